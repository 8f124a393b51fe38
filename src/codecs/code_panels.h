// SPDX-License-Identifier: Apache-2.0
// The integer form (kernels/panels.h) of rows of fixed-width codes with a scale per group: what
// int, float, table and pulses share.
#pragma once

#include <cstdint>
#include <functional>

#include "codecs/codec.h"

namespace quern {

// Streams of codes (bit_stream.h). The level of code c in row i and column j is
//     levels[c] - zeros[i, j / group]   (mod 256; no zeros: 0).
struct CodeRows {
  const uint8_t* low = nullptr;     // [n_out, row_bytes]: streams of n_in codes of low_bits
  const uint8_t* high = nullptr;    // likewise the bits above; null if high_bits is 0
  int low_bits = 0, high_bits = 0;  // 1 to 8 together
  int64_t n_in = 0;
  const uint8_t* levels = nullptr;  // [256], level + 128; those past the codes do not matter
  const uint8_t* zeros = nullptr;   // [n_out, groups] or null
  int64_t group = 0;                // columns of a zero, a multiple of 16 or at least n_in
};

// Columns of a panel's group where scales are for `group` columns of n_in: the most up to 128 that
// divide them, or 0 where they are not a multiple of 16.
int64_t panel_group_of(int64_t group, int64_t n_in);
// The tile of such a matrix, which is read by rows.
PanelTile row_tile(int64_t panel_group, int64_t group, int64_t n_in);

// Levels of rows [row, row + n_rows), at most 16, and columns [col, col + n_cols), from a multiple
// of 64 on, written up to a multiple of `panel_group`.
void code_panel_ref(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col, int64_t n_cols,
                    int64_t panel_group, uint8_t* panel);
void code_panel_avx2(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, int64_t panel_group, uint8_t* panel);
// Needs AVX-512 VBMI.
void code_panel_avx512(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col,
                       int64_t n_cols, int64_t panel_group, uint8_t* panel);
void code_panel(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col, int64_t n_cols,
                int64_t panel_group, uint8_t* panel);

// Rows [row, row + n_rows) and columns [col, col + n_cols) as panels. `read` writes the scales of
// groups [first, first + n) of a row.
using ReadScales = std::function<void(int64_t row, int64_t first, int64_t n, float* scales)>;
void code_panels(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col, int64_t n_cols,
                 int64_t panel_group, const ReadScales& read, const MutablePanels& out);

// Scales of n_cols columns of a panel from row-major values[n_rows, stride], each for `group`
// columns.
void scale_panel(const float* values, int64_t stride, int64_t n_rows, int64_t n_cols, int64_t group,
                 int64_t panel_group, float* panel);

}  // namespace quern
