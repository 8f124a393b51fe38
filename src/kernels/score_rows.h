// SPDX-License-Identifier: Apache-2.0
// Rows of scores of a block of positions, which become weights of a softmax that spans many blocks:
//
//   e[i, j] = 2^fma(x[i, j], to_exponent, -tops[i])  for first[i] <= j < last[i], else 0
//   sums[i, j % 16] += e[i, j]                       in ascending order of j
//
// with the power of vec_math.h. A softmax is e over the sum of sums, whatever tops are; they keep
// powers in range.
#pragma once

#include <cstdint>

namespace quern {

struct ScoreRows {
  float* x = nullptr;  // [n, n_cols]
  int64_t ld = 0;
  int64_t n_cols = 0;                               // a multiple of 16
  const int32_t *first = nullptr, *last = nullptr;  // [n], within 0 and n_cols
  float to_exponent = 1;
  const float* tops = nullptr;  // [n]
  float* sums = nullptr;        // [n, 16]

  ScoreRows from(int64_t i) const {
    return {x + i * ld, ld, n_cols, first + i, last + i, to_exponent, tops + i, sums + 16 * i};
  }
};

}  // namespace quern
