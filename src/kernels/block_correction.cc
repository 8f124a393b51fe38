// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_correction.h"

namespace quern {

void add_correction(const BlockCorrection& x, const float* a, int64_t ld_a, int64_t n, float* y,
                    int64_t ld_y, const KernelTable& table) {
  for (int64_t i = 0; i < n; ++i) {
    const float* row = a + i * ld_a;
    float* sums = y + i * ld_y;
    for (int64_t e = 0; e < x.n_entries; ++e) {
      const float weight = row[x.entry_rows[e]];
      if (weight != 0) sums[x.entry_cols[e]] += weight * x.deltas[e];
    }
    for (int64_t k = 0; k < x.rank; ++k) {
      const float share = table.dot(row, x.left + k * x.rows, x.rows);
      table.axpy(share, x.right + k * x.cols, x.cols, sums);
    }
  }
}

void correct_floats(const BlockCorrection& correction, float* x, const KernelTable& table) {
  const BlockCorrection& c = correction;
  for (int64_t e = 0; e < c.n_entries; ++e) {
    x[c.entry_rows[e] * c.cols + c.entry_cols[e]] += c.deltas[e];
  }
  for (int64_t k = 0; k < c.rank; ++k) {
    for (int64_t r = 0; r < c.rows; ++r) {
      table.axpy(c.left[k * c.rows + r], c.right + k * c.cols, c.cols, x + r * c.cols);
    }
  }
}

}  // namespace quern
