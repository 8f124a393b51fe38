// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"

namespace quern {
namespace {

inline __m256 load_columns(const float* x, int64_t j, int64_t k) {
  if (k - j >= 8) return _mm256_loadu_ps(x + j);
  alignas(32) float part[8] = {};
  if (k > j) std::copy_n(x + j, k - j, part);
  return _mm256_load_ps(part);
}

void range(const float* x, int64_t n, float* low, float* high) {
  __m256 least = _mm256_setzero_ps(), most = _mm256_setzero_ps();
  __m256i magnitude = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 v = load_columns(x, i, n);
    const __m256i bits = _mm256_castps_si256(v);
    magnitude = _mm256_max_epu32(magnitude, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    least = _mm256_min_ps(least, v);
    most = _mm256_max_ps(most, v);
  }
  alignas(32) float lows[8], highs[8];
  alignas(32) uint32_t bits[8];
  _mm256_store_ps(lows, least);
  _mm256_store_ps(highs, most);
  _mm256_store_si256(reinterpret_cast<__m256i*>(bits), magnitude);
  const bool is_finite = *std::max_element(bits, bits + 8) < 0x7f800000u;
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  *low = is_finite ? *std::min_element(lows, lows + 8) + 0.0f : kNone;
  *high = is_finite ? *std::max_element(highs, highs + 8) + 0.0f : kNone;
}

void round_levels(const float* x, int64_t k, int64_t group, float to_levels, int low, int high,
                  int8_t* levels, int32_t* offsets) {
  const __m256 factor = _mm256_set1_ps(to_levels);
  const __m256 least = _mm256_set1_ps(static_cast<float>(low));
  const __m256 most = _mm256_set1_ps(static_cast<float>(high));
  for (int64_t j0 = 0; j0 < k; j0 += group) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t j = j0; j < j0 + group; j += 8, levels += 8) {
      __m256i level = _mm256_setzero_si256();
      if (to_levels != 0) {
        const __m256 exact = _mm256_mul_ps(load_columns(x, j, k), factor);
        level = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(exact, least), most));
      }
      sum = _mm256_add_epi32(sum, level);
      const __m128i halves =
          _mm_packs_epi32(_mm256_castsi256_si128(level), _mm256_extracti128_si256(level, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(levels), _mm_packs_epi16(halves, halves));
    }
    alignas(32) int32_t sums[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
    int32_t total = 0;
    for (const int32_t lane : sums) total += lane;
    *offsets++ = -kPanelZero * total;
  }
}

}  // namespace

void fill_levels_avx2(KernelTable& table) {
  table.range = range;
  table.round_levels = round_levels;
}

}  // namespace quern
