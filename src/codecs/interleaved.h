// SPDX-License-Identifier: Apache-2.0
// interleaved: fixed-width codes with a scale per group of columns, in the order in which panels
// (kernels/panels.h) want them. What the runtime reads in place of rows of such codes (int, float,
// table, ternary, pvq's points): turning rows into panels for every token costs more than reading
// them from memory. No file holds it, so it is in no list.
//
// Layout. Panels of 16 rows one after the other, columns padded to a multiple of 64. A code of
//     1, 2, 4 or 8 bits            lies in `low`,
//     3, 5 or 6 (2 + 1, 4 + 1, 4 + 2)   its lower bits in `low`, the others in `high`,
//     7                            in 8 bits.
// A plane of width w is a sequence of 64-byte lines; byte 4 r + c of line i holds, from its lowest
// bits up, what row r has of columns c + 4 k, k = 8 i / w to 8 (i + 1) / w - 1.
// scales: F16, or F32 where that loses bits, [panels, groups, 16]. zeros (where the codes have
// any): U8, likewise.
// Bits: those of the codes, but 8 for 7, and the side info's.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "codecs/code_panels.h"
#include "codecs/codec.h"

namespace quern {

// Writes the scales of all groups of a row.
using ReadScales = std::function<void(int64_t row, float* scales)>;

// Code c in row i and column j has the value
//     scale * (values[c] - zero)    and the level    levels[c] - zero - 128   of   scale * unit,
// where scale and zero belong to row i and group j / group.
struct InterleavedSource {
  std::string spec;  // of the codec
  int64_t n_out = 0;
  CodeRows rows;
  int bits = 0;       // of the largest code in `rows`
  int64_t group = 0;  // columns that share a scale and a zero, at least n_in: the row
  std::array<float, 256> values{};
  std::array<uint8_t, 256> levels{};
  float unit = 1;
  const uint8_t* zeros = nullptr;  // [n_out, groups]; null: none
  ReadScales read_scales;

  // Whole numbers: code c is c - zero.
  void set_integers(int zero);
};

// Null where groups are not a multiple of 16 columns (or whole rows).
std::shared_ptr<const RuntimeForm> interleave(const InterleavedSource& source);

// One panel, from a multiple of 64 columns on.
struct InterleavedPanel {
  const uint8_t* low = nullptr;
  const uint8_t* high = nullptr;    // null: none
  const uint8_t* zeros = nullptr;   // [groups, 16] from the first column's group on; null: none
  const uint8_t* levels = nullptr;  // [256], repeated above the codes
  int low_bits = 0, high_bits = 0;
  int64_t group = 0;      // columns of a zero, a multiple of 16
  bool is_level = false;  // code c of 8 bits has level c
};
// Levels of n_quads quads of columns, a multiple of 4.
void interleaved_levels_ref(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels);
void interleaved_levels_avx2(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels);
// Needs AVX-512 VBMI.
void interleaved_levels_avx512(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels);

// A whole panel and one row of activations.
struct InterleavedProduct {
  InterleavedPanel panel;
  const std::byte* scales = nullptr;  // [ceil(columns / scale_group)][16], of halves or floats
  bool has_halves = false;
  float unit = 1;  // of the scales
  int64_t scale_group = 0;
  Int8Rows x;  // of groups that are multiples of 32 columns and part scale_group, or one group
  int64_t n_quads = 0;
};
// y[16] to the bit as panel_dot has it of those levels (kernels/panels.h).
void interleaved_dot_avx2(const InterleavedProduct& product, float* y);
void interleaved_dot_avx512(const InterleavedProduct& product, float* y);

}  // namespace quern
