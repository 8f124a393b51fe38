// SPDX-License-Identifier: Apache-2.0
// Products of rows with blocks of bfloat16 in pairs, as the tiles of AMX take them: how queries
// meet keys, and weights of attention values, where a cache keeps bfloat16; and how the inputs of a
// layer meet its weights where both are rounded to it.
//
//   y[i, j] <- sum_p a[i, p] v[p, j]
//
// The sum is defined as TDPBF16PS takes it (Intel's manual, volume 2), so that tiles, vectors and
// scalars agree to the bit: terms go by groups of 32, the last may be shorter. Within a group the
// even terms and the odd ones are two sums, each by fused multiply-add in ascending order from +0;
//   y = (...((+0 + (even_0 + odd_0)) + (even_1 + odd_1)) + ...).
// Terms with a[i, p] = 0 are invisible where v is finite. The instruction takes and gives zeros for
// subnormal numbers: values here are zero or at least 2^-50, in 8 bits, so that all sums are
// multiples of 2^-114 and none is subnormal.
#pragma once

#include <cstdint>

namespace quern {

inline constexpr int64_t kPairGroup = 32;  // terms
// round_bf16 gives zero, or between these.
inline constexpr float kLeastBf16 = 0x1p-50f, kMostBf16 = 0x1p100f;

// Place of a number among those of a block [n_v / 2, n, 2].
inline constexpr int64_t pair_place(int64_t n, int64_t p, int64_t j) {
  return (p / 2 * n + j) * 2 + p % 2;
}

// `n_rows` rows of a against each of `n_blocks` blocks, at least one, [n_v / 2, n, 2] of bfloat16,
// n_v even: the pair of v[p, j] and v[p + 1, j]. Either every block meets the same columns of a
// (step_a = 0) and has columns of y for itself, or all meet columns of their own (step_a = n_v) and
// are one sum (step_y = 0), in which n_v is a multiple of 32.
struct PairProduct {
  const float* a = nullptr;  // values that round_bf16 gives
  int64_t ld_a = 0, step_a = 0, n_rows = 0;
  const uint16_t* const* blocks = nullptr;
  int64_t n_blocks = 0, n_v = 0, n = 0;
  float* y = nullptr;
  int64_t ld_y = 0, step_y = 0;
  const uint16_t* packed_a = nullptr;  // a as bfloat16 in place of floats; n_v a multiple of 32
};

}  // namespace quern
