// SPDX-License-Identifier: Apache-2.0
// Up to 16 levels stay in registers; more are gathered from memory.
#include <cstring>

#include "codecs/bit_stream_avx2.h"
#include "codecs/scalar_table.h"

namespace quern {
namespace {

template <bool kIsSmall>
__m256 lookup(__m256i codes, __m256 lower, __m256 upper, const float* levels) {
  if constexpr (kIsSmall) {
    const __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));  // by the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, codes),
                            _mm256_permutevar8x32_ps(upper, codes), is_upper);
  } else {
    return _mm256_i32gather_ps(levels, codes, 4);
  }
}

template <bool kIsSmall, bool kIsSplit>
void decode_row(const TableRow& row, float* dst) {
  const CodeSplit split(row.bits);
  const __m256 lower = _mm256_load_ps(row.levels), upper = _mm256_load_ps(row.levels + 8);
  int64_t group_end = 0, group_index = -1;
  __m256 scale = _mm256_setzero_ps(), negative = scale, shift = scale;
  for (int64_t i = 0; i < row.n; i += 16) {
    if (i >= group_end) {
      ++group_index;
      group_end += row.group;
      scale = _mm256_set1_ps(row.scales[group_index * row.sides]);
      negative = _mm256_set1_ps(row.scales[group_index * row.sides + row.sides - 1]);
      if (row.shifts != nullptr) shift = _mm256_set1_ps(row.shifts[group_index]);
    }
    __m128i codes = sixteen_codes_avx2(row.low, i, row.n, split.low);
    if constexpr (kIsSplit) {
      const __m128i high = sixteen_codes_avx2(row.high, i, row.n, split.high);
      codes = _mm_or_si128(codes, _mm_slli_epi16(high, 4));  // at most 7 bits
    }
    alignas(32) float values[16];
    const __m128i halves[2] = {codes, _mm_srli_si128(codes, 8)};
    for (int h = 0; h < 2; ++h) {
      const __m256 level =
          lookup<kIsSmall>(_mm256_cvtepu8_epi32(halves[h]), lower, upper, row.levels);
      __m256 result = _mm256_mul_ps(level, _mm256_blendv_ps(scale, negative, level));
      if (row.shifts != nullptr) result = _mm256_add_ps(result, shift);
      _mm256_store_ps(values + 8 * h, result);
    }
    const int64_t n = row.n - i < 16 ? row.n - i : 16;
    std::memcpy(dst + i, values, static_cast<size_t>(n) * sizeof(float));
  }
}

}  // namespace

void table_decode_row_avx2(const TableRow& row, float* dst) {
  if (row.bits <= 4) return decode_row<true, false>(row, dst);
  if (row.bits == 8) return decode_row<false, false>(row, dst);
  decode_row<false, true>(row, dst);
}

}  // namespace quern
