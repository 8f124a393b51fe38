// SPDX-License-Identifier: Apache-2.0
// Products of rows of floats with a block of whole numbers that have scales: how queries meet coded
// keys, and weights of attention coded values, at the speed of their bytes.
//
//   x[r, j] = scale (level[r, j] - zero) + centre        y[i, j] += sum_r a[i, r] x[r, j]
//
// The rows a are rounded to whole numbers themselves, so that sums are exact integers; what is left
// out, centres and scales, is linear and is floats. The result is defined to the bit, whatever the
// ISA and however many rows come together. With round(t) the whole numbers of some t: largest is
// the largest |t|,
//     step = largest / most,   q = t (most / largest) to nearest even, not below 0 if kUnsigned,
// all q zero where largest < 2^-100, a step of NaN and zeros where it is no number; most is
//     kSigned     127 in one plane of bytes, 32639 = 127 (256 + 1) in two,
//     kUnsigned   255 and 65535.
// Sums of floats run in the lanes of kernels.h. Then
//   kDown, scales by columns:   for g = 0, 1, ..., the rows of group g alone:
//     y = fma(float(sum_r q[r] (level[r, j] - zero)), scale[g, j] step, y),  q = round(a[g, :])
//     y = fma(centre[g, j], sum_r a[r], y)                                   unless there are none
//   kAcross, scales by rows:    where j is in group g, all rows:
//     y = fma(float(sum_r q[r] (level[r, j] - zero)), step, y + sum_r a[r] centre[g, r]),
//                                                            q = round(a scale[g, :])
// In kAcross a row r with a[r] = 0 does not count, whatever its scale and centre.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/level_codes.h"

namespace quern {

struct LevelBlock {
  enum class Share : uint8_t { kDown, kAcross };
  enum class Sign : uint8_t { kSigned, kUnsigned };  // of a: then levels are unsigned, or signed

  LevelCodes levels;  // [rows / 4][cols][4], of uint8_t or int8_t
  // kDown: [rows / group][cols]; kAcross: [cols / group][rows]. Centres may be null.
  const float *scales = nullptr, *centres = nullptr;
  int64_t rows = 0, cols = 0;  // multiples of 16; at most kMostLevelRows rows
  int64_t group = 0;           // a multiple of 16 that divides rows, or cols
  Share share = Share::kDown;
  Sign sign = Sign::kSigned;
  int zero = 0;    // 0 to 128
  int planes = 1;  // of bytes that a is rounded to: 1 or 2
  // Bytes that are read after this block: level_dot fetches them ahead.
  const std::byte* next = nullptr;
  int64_t n_next = 0;

  int64_t n_groups() const { return (share == Share::kDown ? rows : cols) / group; }
  // Sets of whole numbers of a row of a.
  int64_t n_sets() const { return share == Share::kDown ? 1 : n_groups(); }
  float most() const {
    if (sign == Sign::kSigned) return planes == 1 ? 127.0f : 32639.0f;
    return planes == 1 ? 255.0f : 65535.0f;
  }
};

// Sums of two planes fit into 32 bits.
inline constexpr int64_t kMostLevelRows = 512;

// Place of a level among those of a block.
inline constexpr int64_t level_place(int64_t cols, int64_t row, int64_t col) {
  return (row / 4 * cols + col) * 4 + row % 4;
}

// Rows a that are rounded for a block.
struct LevelRows {
  uint8_t* q = nullptr;        // [n, n_sets, planes, rows], the upper plane first
  float* steps = nullptr;      // [n, n_groups]
  int32_t* offsets = nullptr;  // [n, n_groups]: -zero times the sum of q
  float* sums = nullptr;       // [n, n_groups]: of a, or of a and centres

  LevelRows from(int64_t i, const LevelBlock& b) const {
    const int64_t g = i * b.n_groups();
    return {q + i * b.n_sets() * b.planes * b.rows, steps + g, offsets + g, sums + g};
  }
};

// One number of level_floats in kernels.h.
float level_float(const LevelBlock& block, int64_t row, int64_t col);

}  // namespace quern
