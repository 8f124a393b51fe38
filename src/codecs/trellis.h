// SPDX-License-Identifier: Apache-2.0
// The seam between the trellis codec and its decoders.
#pragma once

#include <cstdint>

#include "codecs/trellis_code.h"

namespace quern {

// The stream of one strip and the scales of its rows.
struct TrellisStrip {
  const uint8_t* words;  // n_words little-endian 32-bit words, unaligned
  int64_t n_words;
  const float* scales;  // [height]
  int64_t height;       // rows that the stream covers, a multiple of 64
  int64_t n_in;
};

// dst[(r - first), j] = scale_r * value(window of weight j * height + r) for rows
// [first, first + n) of the strip; dst is [n, n_in]. What lies before the stream is zero.
void trellis_decode_ref(const TrellisCode& code, const TrellisStrip& strip, int64_t first,
                        int64_t n, float* dst);
// Needs AVX-512 VBMI.
void trellis_decode_avx512(const TrellisCode& code, const TrellisStrip& strip, int64_t first,
                           int64_t n, float* dst);

// Levels of rows [row, row + n_rows) of the strip, from a multiple of 16 on, and columns
// [col, col + n_cols) as panels (see kernels/panels.h): value + 128 where the strip has a weight.
struct TrellisWindow {
  int64_t row, n_rows, col, n_cols;
};
void trellis_levels_ref(const TrellisCode& code, const TrellisStrip& strip,
                        const TrellisWindow& window, uint8_t* levels, int64_t stride);
// Needs AVX-512 VBMI and n_cols a multiple of 4.
void trellis_levels_avx512(const TrellisCode& code, const TrellisStrip& strip,
                           const TrellisWindow& window, uint8_t* levels, int64_t stride);

}  // namespace quern
