// SPDX-License-Identifier: Apache-2.0
// 16 rows of a column at once: their windows end within 64 bits, so that each lane takes two of
// five words and shifts them together. 16 x 16 values are then turned from columns into rows.
#include <algorithm>

#include "codecs/trellis.h"
#include "codecs/trellis_levels_avx512.h"

namespace quern {
namespace {

template <int kLevelBits>
void decode_avx512(const TrellisCode& code, const TrellisStrip& strip, int64_t first, int64_t n,
                   float* dst) {
  const TrellisLevels<kLevelBits> levels(code);
  alignas(64) int32_t ends[16], column_starts[16];
  for (int i = 0; i < 16; ++i) ends[i] = i / 8 * code.eighths + code.end_bit(i % 8 + 1);
  for (int i = 0; i < 16; ++i) column_starts[i] = i * 16;
  const __m512i end = _mm512_load_si512(ends), starts = _mm512_load_si512(column_starts);
  const __m512i one = _mm512_set1_epi32(1), below_32 = _mm512_set1_epi32(31);
  alignas(64) float tile[16 * 16];  // [column][row]
  for (int64_t r0 = first / 16 * 16; r0 < first + n; r0 += 16) {
    const __m512 scale = _mm512_loadu_ps(strip.scales + r0);
    const int64_t row_begin = std::max(first, r0), row_end = std::min(first + n, r0 + 16);
    for (int64_t j0 = 0; j0 < strip.n_in; j0 += 16) {
      const int64_t width = std::min<int64_t>(16, strip.n_in - j0);
      for (int64_t j = 0; j < width; ++j) {
        const int64_t start = ((j0 + j) * strip.height + r0) / 8 * code.eighths;
        const int64_t word = start / 32 - 1;  // of the first lane's older half
        const int64_t before = word < 0 ? 1 : 0, left = strip.n_words - word;
        const unsigned present = ((1u << (left < 8 ? left : 8)) - 1) >> before << before;
        const __m512i words = _mm512_castsi256_si512(
            _mm256_maskz_loadu_epi32(static_cast<__mmask8>(present), strip.words + 4 * word));
        const __m512i bit = _mm512_add_epi32(end, _mm512_set1_epi32(static_cast<int>(start % 32)));
        const __m512i older = _mm512_srli_epi32(bit, 5);
        const __m512i shift = _mm512_and_si512(bit, below_32);
        const __m512i high = _mm512_sllv_epi32(_mm512_permutexvar_epi32(older, words), shift);
        const __m512i low =
            _mm512_srlv_epi32(_mm512_permutexvar_epi32(_mm512_add_epi32(older, one), words),
                              _mm512_sub_epi32(_mm512_set1_epi32(32), shift));
        const __m512i value = levels.values(_mm512_or_si512(high, low));
        _mm512_store_ps(tile + 16 * j, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(value)));
      }
      const auto mask = static_cast<__mmask16>((1u << width) - 1);
      for (int64_t r = row_begin; r < row_end; ++r) {
        const __m512 row =
            _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, starts, tile + (r - r0), 4);
        _mm512_mask_storeu_ps(dst + (r - first) * strip.n_in + j0, mask, row);
      }
    }
  }
}

}  // namespace

void trellis_decode_avx512(const TrellisCode& code, const TrellisStrip& strip, int64_t first,
                           int64_t n, float* dst) {
  if (code.level_bits == 6) return decode_avx512<6>(code, strip, first, n, dst);
  if (code.level_bits == 7) return decode_avx512<7>(code, strip, first, n, dst);
  decode_avx512<8>(code, strip, first, n, dst);
}

}  // namespace quern
