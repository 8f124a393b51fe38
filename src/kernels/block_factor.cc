// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_factor.h"

#include <algorithm>

#include "tensor/matrix.h"

namespace quern {

void add_product(const BlockFactor& factor, const float* by, const float* x, int64_t n, int64_t d,
                 float* y, const KernelTable& table) {
  const int64_t m = factor.size;
  for (int64_t c = 0; c < d; c += m) table.axpy_rows(x + c, d, n, by, m, m, m, y + c, d);
}

void multiply_block(const BlockFactor& factor, int64_t n, int64_t d, float* x,
                    const KernelTable& table) {
  thread_local AlignedVector<float> before;
  before.assign(x, x + n * d);
  std::fill_n(x, n * d, 0.0f);
  if (!factor.is_of_keys) return add_product(factor, factor.matrix, before.data(), n, d, x, table);
  const int64_t m = factor.size;
  for (int64_t c = 0; c < d; c += m) {
    table.axpy_rows(factor.turned, m, m, before.data() + c * n, n, m, n, x + c * n, n);
  }
}

}  // namespace quern
