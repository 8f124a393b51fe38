// SPDX-License-Identifier: Apache-2.0
// 64 codes of any width in two instructions: vpermb gives each group of eight codes the `bits`
// bytes that hold them, vpmultishiftqb cuts the eight fields out of each 64-bit lane.
#include <immintrin.h>

#include "codecs/int.h"

namespace quern {
namespace {

__m512i spread_index(int bits) {
  alignas(64) uint8_t index[64];
  for (int i = 0; i < 64; ++i) index[i] = static_cast<uint8_t>((i / 8) * bits + i % 8);
  return _mm512_load_si512(index);
}

__m512i field_shifts(int bits) {
  alignas(64) uint8_t shift[64];
  for (int i = 0; i < 64; ++i) shift[i] = static_cast<uint8_t>((i % 8) * bits);
  return _mm512_load_si512(shift);
}

float half_at(const uint8_t* halves, int64_t i) {
  const int bits = halves[2 * i] | (halves[2 * i + 1] << 8);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

}  // namespace

void int_decode_row_avx512(const IntRow& row, float* dst) {
  const __m512i index = spread_index(row.bits);
  const __m512i shifts = field_shifts(row.bits);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << row.bits) - 1));
  const int64_t total_bytes = (row.n * row.bits + 7) / 8;
  int64_t group_end = 0, group_index = -1;
  __m512 scale = _mm512_setzero_ps();
  __m512i zero = _mm512_set1_epi32(1 << (row.bits - 1));
  for (int64_t i = 0; i < row.n; i += 64) {
    const int64_t first_byte = i / 8 * row.bits;
    const int64_t left = total_bytes - first_byte;
    const int64_t present = left < 8 * row.bits ? left : 8 * row.bits;
    const __mmask64 in_row = present == 64 ? ~0ull : (1ull << present) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(in_row, row.codes + first_byte);
    const __m512i spread = _mm512_permutexvar_epi8(index, bytes);
    const __m512i codes = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, spread), mask);
    const __m128i quarters[4] = {_mm512_castsi512_si128(codes), _mm512_extracti32x4_epi32(codes, 1),
                                 _mm512_extracti32x4_epi32(codes, 2),
                                 _mm512_extracti32x4_epi32(codes, 3)};
    for (int q = 0; q < 4 && i + 16 * q < row.n; ++q) {
      const int64_t at = i + 16 * q;
      if (at >= group_end) {
        ++group_index;
        group_end += row.group;
        scale = _mm512_set1_ps(half_at(row.scales, group_index));
        if (row.zeros != nullptr) zero = _mm512_set1_epi32(row.zeros[group_index]);
      }
      const __m512i centred = _mm512_sub_epi32(_mm512_cvtepu8_epi32(quarters[q]), zero);
      const __m512 result = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(centred));
      const int64_t n = row.n - at;
      if (n >= 16) {
        _mm512_storeu_ps(dst + at, result);
      } else {
        _mm512_mask_storeu_ps(dst + at, static_cast<__mmask16>((1u << n) - 1), result);
      }
    }
  }
}

}  // namespace quern
