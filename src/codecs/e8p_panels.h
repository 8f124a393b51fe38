// SPDX-License-Identifier: Apache-2.0
// e8p as products with 8-bit activations read it: codes in the order of panels (kernels/panels.h),
// in as many bits. No file holds it, so it is in no list.
//
// Layout. codes: U8 [panels, ceil(n_in / 32), bits, 64], scales: F16 [panels, 16]. A line of 64
// bytes has a byte of each of four blocks of the panel's rows, that of row r and block b at
//     16 floor(r / 4) + 8 floor(b / 2) + 2 (r % 4) + b % 2.
// The first line has the rows of the codebook, the second the signs, turned (below); then follow
// the bytes of E8, or rows and signs of the residual.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "codecs/codec.h"
#include "codecs/e8p.h"

namespace quern {

// From the two bytes of a block to levels. The columns 4 h + 2 p and 4 h + 2 p + 1 of a block, h
// and p 0 or 1, have a byte x: four bits of magnitudes[p][first byte] and four of
// signs[p][second byte], the lower ones of magnitudes and the upper of signs where h = 0, the
// others where h = 1. Their levels are levels[h][x % 64] and levels[h][x / 4].
//
// A column has two bits of each: a magnitude of four; its sign, and whether 1/4 is taken. A row of
// an odd sum needs one sign turned: its first 1/2 becomes the fourth magnitude, -1/2, and signs of
// the form are those of the code with bit 7 and that column's turned.
struct E8pPanelTables {
  alignas(64) uint8_t magnitudes[2][256];
  alignas(64) uint8_t signs[2][256];
  alignas(64) uint8_t levels[2][64];
};

// Lines of one panel, n times 32 columns.
struct E8pLines {
  const E8pPanelTables* point;
  const E8pPanelTables* residual;  // null: none; its levels are added
  E8pResidual kind;
  const uint8_t* codes;
  int64_t n;
};
void e8p_lines_ref(const E8pLines& lines, uint8_t* panel);
void e8p_lines_avx2(const E8pLines& lines, uint8_t* panel);
void e8p_lines_avx512(const E8pLines& lines, uint8_t* panel);  // needs VBMI

// A whole panel against one row of activations, whose groups are multiples of 32 columns:
// y[16] to the bit as panel_dot has it (kernels/panels.h) of those levels and of scales[16] in
// every group. Needs VBMI.
void e8p_dot_avx512(const E8pLines& lines, const Int8Rows& x, const float* scales, float* y);

constexpr int64_t kE8pLine = 64;
// Lines of 32 columns, and which of them has the second byte of a block of the residual.
constexpr int64_t e8p_n_lines(E8pResidual kind) { return 2 + static_cast<int64_t>(kind); }
constexpr int64_t e8p_second_line(E8pResidual kind) { return kind == E8pResidual::kE8 ? 2 : 3; }

// `codes` as in a file, of a residual multiplied by `ratio` before it was coded. A level is a
// quarter of the scale; with a residual the eighth of one, to which that of the residual is
// rounded.
std::shared_ptr<const RuntimeForm> e8p_panel_form(std::string spec, E8pResidual kind, float ratio,
                                                  const CodesView& codes);

}  // namespace quern
