// SPDX-License-Identifier: Apache-2.0
// Scalar reference of pair_product.h.
#include <algorithm>
#include <cmath>

#include "base/float_types.h"
#include "kernels/tables.h"

namespace quern {
namespace {

float term(const PairProduct& p, int64_t place) {
  return p.packed_a != nullptr ? bf16_to_float(p.packed_a[place]) : p.a[place];
}

// The terms of a from `place` on and column j of a block, added to y.
float gather(const PairProduct& p, int64_t place, const uint16_t* v, int64_t j, float y) {
  for (int64_t first = 0; first < p.n_v; first += kPairGroup) {
    float even = 0, odd = 0;
    for (int64_t t = first; t < std::min(first + kPairGroup, p.n_v); t += 2) {
      const uint16_t* pair = v + pair_place(p.n, t, j);
      even = std::fma(term(p, place + t), bf16_to_float(pair[0]), even);
      odd = std::fma(term(p, place + t + 1), bf16_to_float(pair[1]), odd);
    }
    y = y + (even + odd);
  }
  return y;
}

void pair_product(const PairProduct& p) {
  for (int64_t b = 0; b < p.n_blocks; ++b) {
    const bool is_first = p.step_y != 0 || b == 0;
    for (int64_t i = 0; i < p.n_rows; ++i) {
      const int64_t place = i * p.ld_a + b * p.step_a;
      float* y = p.y + i * p.ld_y + b * p.step_y;
      for (int64_t j = 0; j < p.n; ++j) {
        y[j] = gather(p, place, p.blocks[b], j, is_first ? 0 : y[j]);
      }
    }
  }
}

}  // namespace

void fill_pairs_ref(KernelTable& table) { table.pair_product = pair_product; }

}  // namespace quern
