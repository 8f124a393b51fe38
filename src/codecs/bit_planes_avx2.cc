// SPDX-License-Identifier: Apache-2.0
// Eight bits of a plane are shifted to the lowest bit of their lanes; one permute looks up the
// code.
#include <cstring>

#include "codecs/bit_planes.h"
#include "kernels/intrinsics.h"

namespace quern {

void bit_planes_decode_row_avx2(const BitPlaneRow& row, float* dst) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), one = _mm256_set1_epi32(1);
  const int n_levels = 1 << row.n_planes;
  const float* next_levels = row.levels;
  __m256 levels = _mm256_setzero_ps();
  int64_t group_end = 0;
  for (int64_t i = 0; i < row.n; i += 8) {
    if (i >= group_end) {
      alignas(32) float padded[kMostLevels] = {};
      std::memcpy(padded, next_levels, static_cast<size_t>(n_levels) * sizeof(float));
      levels = _mm256_load_ps(padded);
      next_levels += n_levels;
      group_end += row.group;
    }
    __m256i code = _mm256_setzero_si256();
    for (int p = row.n_planes - 1; p >= 0; --p) {
      const __m256i bits = _mm256_srlv_epi32(_mm256_set1_epi32(row.planes[p][i / 8]), lane);
      code = _mm256_or_si256(_mm256_slli_epi32(code, 1), _mm256_and_si256(bits, one));
    }
    const __m256 value = _mm256_permutevar8x32_ps(levels, code);
    const int64_t n = row.n - i < 8 ? row.n - i : 8;
    alignas(32) float values[8], factors[8] = {};
    if (row.factors != nullptr) {
      std::memcpy(factors, row.factors + i, static_cast<size_t>(n) * sizeof(float));
      _mm256_store_ps(values, _mm256_mul_ps(value, _mm256_load_ps(factors)));
    } else {
      _mm256_store_ps(values, value);
    }
    std::memcpy(dst + i, values, static_cast<size_t>(n) * sizeof(float));
  }
}

}  // namespace quern
