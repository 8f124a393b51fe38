// SPDX-License-Identifier: Apache-2.0
// The seam between the trellis codec and its decoders.
#pragma once

#include <cstddef>
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

// 2^(-i / 16). Code s of a scale stands for base * kTrellisSteps[s % 16] * 2^-(s / 16), 255 for 0.
inline constexpr float kTrellisSteps[16] = {1.0f,        0.95760328f, 0.91700404f, 0.87812608f,
                                            0.84089642f, 0.80524517f, 0.77110541f, 0.73841307f,
                                            0.70710678f, 0.67712777f, 0.64841978f, 0.62092891f,
                                            0.59460356f, 0.56939432f, 0.54525387f, 0.52213689f};

// The scales of n rows as panels, `stride` apart; zero for what the last one has above them.
void trellis_scales_avx512(float base, const std::byte* codes, int64_t n, float* scales,
                           int64_t stride);

// Levels of rows [row, row + n_rows) of the strip, from a multiple of 16 on, and columns
// [col, col + n_cols) as panels (see kernels/panels.h): value + 128 where the strip has a weight.
struct TrellisWindow {
  int64_t row, n_rows, col, n_cols;
};
void trellis_levels_ref(const TrellisCode& code, const TrellisStrip& strip,
                        const TrellisWindow& window, uint8_t* levels, int64_t stride);
// These need n_cols a multiple of 4, the second AVX-512 VBMI.
void trellis_levels_avx2(const TrellisCode& code, const TrellisStrip& strip,
                         const TrellisWindow& window, uint8_t* levels, int64_t stride);
void trellis_levels_avx512(const TrellisCode& code, const TrellisStrip& strip,
                           const TrellisWindow& window, uint8_t* levels, int64_t stride);

}  // namespace quern
