// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "codecs/bit_stream_avx2.h"
#include "codecs/int.h"

namespace quern {
namespace {

float half_at(const uint8_t* halves, int64_t i) {
  const int bits = halves[2 * i] | (halves[2 * i + 1] << 8);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

}  // namespace

void int_decode_row_avx2(const IntRow& row, float* dst) {
  int64_t group_end = 0, group_index = -1;
  __m256 scale = _mm256_setzero_ps();
  __m256 zero = _mm256_set1_ps(static_cast<float>(1 << (row.bits - 1)));
  for (int64_t i = 0; i < row.n; i += 16) {
    if (i >= group_end) {
      ++group_index;
      group_end += row.group;
      scale = _mm256_set1_ps(half_at(row.scales, group_index));
      if (row.zeros != nullptr) zero = _mm256_set1_ps(static_cast<float>(row.zeros[group_index]));
      if (row.half_zeros != nullptr) zero = _mm256_set1_ps(half_at(row.half_zeros, group_index));
    }
    const int64_t n = row.n - i < 16 ? row.n - i : 16;
    const __m128i codes = sixteen_codes_avx2(row.codes, i, row.n, row.bits);
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)));
    alignas(32) float values[16];
    _mm256_store_ps(values, _mm256_mul_ps(scale, _mm256_sub_ps(low, zero)));
    _mm256_store_ps(values + 8, _mm256_mul_ps(scale, _mm256_sub_ps(high, zero)));
    std::memcpy(dst + i, values, static_cast<size_t>(n) * sizeof(float));
  }
}

}  // namespace quern
