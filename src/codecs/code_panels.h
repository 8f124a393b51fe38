// SPDX-License-Identifier: Apache-2.0
// Rows of fixed-width codes turned into the order of panels (kernels/panels.h), and what codecs
// share that write panels by rows.
#pragma once

#include <cstdint>

#include "codecs/codec.h"

namespace quern {

// Streams of codes (bit_stream.h).
struct CodeRows {
  const uint8_t* low = nullptr;     // [n_out, row_bytes]: streams of n_in codes of low_bits
  const uint8_t* high = nullptr;    // likewise the bits above; null if high_bits is 0
  int low_bits = 0, high_bits = 0;  // 1 to 8 together
  int64_t n_in = 0;
};

// Columns of a panel's group where scales are for `group` columns of n_in: the most up to 256 that
// divide them, or 0 where they are not a multiple of 16.
int64_t panel_group_of(int64_t group, int64_t n_in);
// The tile of such a matrix, which is read by rows.
PanelTile row_tile(int64_t panel_group, int64_t group, int64_t n_in);

// Codes of rows [row, row + n_rows), at most 16, as the levels of a panel: byte 4 r + j % 4 of line
// j / 4 is that of row r and column j. Whole lines of columns up to a multiple of 16 are written;
// what lies past n_rows and n_in is left open.
void code_panel_ref(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel);
void code_panel_avx2(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel);
// Needs AVX-512 VBMI.
void code_panel_avx512(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel);
void code_panel(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel);

// Scales of n_cols columns of a panel from row-major values[n_rows, stride], each for `group`
// columns.
void scale_panel(const float* values, int64_t stride, int64_t n_rows, int64_t n_cols, int64_t group,
                 int64_t panel_group, float* panel);

}  // namespace quern
