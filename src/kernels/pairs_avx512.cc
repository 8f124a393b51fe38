// SPDX-License-Identifier: Apache-2.0
// Rows to blocks of bfloat16 in pairs: sixteen rows at a time are rounded, 32 numbers of each are
// sixteen pairs, and turned.
#include <algorithm>

#include "kernels/lanes_avx512.h"
#include "kernels/pack_avx512.h"
#include "kernels/tables.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

constexpr int64_t kRows = 16;

__m512i rounded(const float* x, __mmask16 some) {
  const Lanes low = Lanes::max(Lanes::set(-kMostBf16), {_mm512_maskz_loadu_ps(some, x)});
  return _mm512_castps_si512(vec_math::round_bf16(Lanes::min(Lanes::set(kMostBf16), low)).v);
}

// The pairs of the first n of 32 numbers and zeros.
__m512i pairs_of(const float* x, int64_t n) {
  const auto first = [](int64_t count) {
    return Lanes::first(static_cast<int>(std::clamp<int64_t>(count, 0, 16)));
  };
  return upper_halves(rounded(x, first(n)), rounded(x + 16, first(n - 16)));
}

void pack_pairs(const float* w, int64_t ld_w, int64_t n, int64_t k, uint16_t* block) {
  for (int64_t p = 0; p < k; p += kPairGroup) {
    for (int64_t j = 0; j < n; j += kRows) {
      const int64_t rows = std::min(kRows, n - j);
      uint16_t* to = block + pair_place(n, p, j);
      if (n == 1) {
        _mm512_storeu_si512(to, pairs_of(w + p, k - p));
        continue;
      }
      __m512i pairs[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        pairs[r] = r < rows ? pairs_of(w + (j + r) * ld_w + p, k - p) : _mm512_setzero_si512();
      }
      transpose_16x16(pairs);
      const __mmask16 some = Lanes::first(static_cast<int>(rows));
      for (int64_t t = 0; t < kRows; ++t) {
        _mm512_mask_storeu_epi32(to + 2 * t * n, some, pairs[t]);
      }
    }
  }
}

}  // namespace

void fill_pairs_avx512(KernelTable& table) { table.pack_pairs = pack_pairs; }

}  // namespace quern
