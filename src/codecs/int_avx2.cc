// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstring>

#include "codecs/int.h"

namespace quern {
namespace {

float half_at(const uint8_t* halves, int64_t i) {
  const int bits = halves[2 * i] | (halves[2 * i + 1] << 8);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Sixteen codes as bytes; reads only bytes that hold them.
__m128i sixteen_codes(const IntRow& row, int64_t i, int64_t n) {
  alignas(16) uint8_t bytes[16] = {};
  if (row.bits == 8) {
    std::memcpy(bytes, row.codes + i, static_cast<size_t>(n));
    return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  }
  std::memcpy(bytes, row.codes + i / 2, static_cast<size_t>((n + 1) / 2));
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  const __m128i low_mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(packed, low_mask);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), low_mask);
  return _mm_unpacklo_epi8(low, high);
}

}  // namespace

void int_decode_row_avx2(const IntRow& row, float* dst) {
  int64_t group_end = 0, group_index = -1;
  __m256 scale = _mm256_setzero_ps(), zero = _mm256_setzero_ps();
  for (int64_t i = 0; i < row.n; i += 16) {
    if (i >= group_end) {
      ++group_index;
      group_end += row.group;
      scale = _mm256_set1_ps(half_at(row.scales, group_index));
      zero = _mm256_set1_ps(row.zeros != nullptr ? static_cast<float>(row.zeros[group_index])
                                                 : static_cast<float>(1 << (row.bits - 1)));
    }
    const int64_t n = row.n - i < 16 ? row.n - i : 16;
    const __m128i codes = sixteen_codes(row, i, n);
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)));
    alignas(32) float values[16];
    _mm256_store_ps(values, _mm256_mul_ps(scale, _mm256_sub_ps(low, zero)));
    _mm256_store_ps(values + 8, _mm256_mul_ps(scale, _mm256_sub_ps(high, zero)));
    std::memcpy(dst + i, values, static_cast<size_t>(n) * sizeof(float));
  }
}

}  // namespace quern
