// SPDX-License-Identifier: Apache-2.0
// KernelTable::pack_pairs by a function that rounds rows.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/pair_product.h"

namespace quern {

// The function's own type, of internal linkage, makes this one of its own for each ISA.
template <class Owner, class Round>
static inline void pack_pairs_by(const Round& round, const float* w, int64_t ld_w, int64_t n,
                                 int64_t k, uint16_t* block) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t first = 0; first < k; first += kPairGroup) {
      float rounded[kPairGroup] = {};
      round(w + j * ld_w + first, first + kPairGroup < k ? kPairGroup : k - first, rounded);
      for (int64_t t = 0; t < kPairGroup; ++t) {
        const auto bits = __builtin_bit_cast(uint32_t, rounded[t]);
        block[pair_place(n, first + t, j)] = static_cast<uint16_t>(bits >> 16);
      }
    }
  }
}

}  // namespace quern
