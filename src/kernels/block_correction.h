// SPDX-License-Identifier: Apache-2.0
// What is added to a coded block of keys or values: a product of low rank, and single numbers.
//
//   x[r, j] += sum_k left[k, r] right[k, j] + the deltas that lie at (r, j)
//
// Rows a meet it behind the block itself, defined to the bit whatever the ISA:
//   y[i, j] += a[i, r] delta                            for the entries in their order, rounded
//   twice y[i, :] = fma(dot(a[i, :], left[k, :]), right[k, :], y[i, :])            for k = 0, 1,
//   ...
// An entry in a row with a[i, r] = 0 does not count.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace quern {

struct BlockCorrection {
  int64_t rows = 0, cols = 0;  // of the block
  int64_t rank = 0;
  const float *left = nullptr, *right = nullptr;  // [rank, rows], [rank, cols]
  int64_t n_entries = 0;
  const uint16_t *entry_rows = nullptr, *entry_cols = nullptr;  // [n_entries]
  const float* deltas = nullptr;                                // [n_entries]
};

// y += a x of n rows a.
void add_correction(const BlockCorrection& x, const float* a, int64_t ld_a, int64_t n, float* y,
                    int64_t ld_y, const KernelTable& table);
// x [rows, cols] with it.
void correct_floats(const BlockCorrection& correction, float* x, const KernelTable& table);

}  // namespace quern
