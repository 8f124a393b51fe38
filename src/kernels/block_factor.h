// SPDX-License-Identifier: Apache-2.0
// Blocks of keys or values that are products: of a position every `size` neighbouring channels are
// l S, with one matrix S for all, and a block has the l. Products need not multiply blocks:
//   keys     q . (l S) = (q S') . l                  the query is multiplied before them
//   values   sum_p a_p (l_p S) = (sum_p a_p l_p) S   the sum is multiplied behind them
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace quern {

struct BlockFactor {
  int64_t size = 0;         // of S; divides the channels of a head
  bool is_of_keys = false;  // blocks are [channels, positions], else [positions, channels]
  const float *matrix = nullptr, *turned = nullptr;  // [size, size]: S, S'
};

// y += x by, every `size` channels by themselves, for n rows of d; `by` is S or S'. Each element
// gathers its terms in ascending order by fused multiply-add.
void add_product(const BlockFactor& factor, const float* by, const float* x, int64_t n, int64_t d,
                 float* y, const KernelTable& table);
// l S in place of l: a block of d channels at n positions.
void multiply_block(const BlockFactor& factor, int64_t n, int64_t d, float* x,
                    const KernelTable& table);

}  // namespace quern
