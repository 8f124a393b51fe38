// SPDX-License-Identifier: Apache-2.0
#include "codecs/bit_stream_avx512.h"
#include "codecs/int.h"

namespace quern {
namespace {

float half_at(const uint8_t* halves, int64_t i) {
  const int bits = halves[2 * i] | (halves[2 * i + 1] << 8);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

}  // namespace

void int_decode_row_avx512(const IntRow& row, float* dst) {
  const CodeReaderAvx512 reader(row.codes, row.n, row.bits);
  int64_t group_end = 0, group_index = -1;
  __m512 scale = _mm512_setzero_ps();
  __m512 zero = _mm512_set1_ps(static_cast<float>(1 << (row.bits - 1)));
  for (int64_t i = 0; i < row.n; i += 64) {
    const __m512i codes = reader.read(i);
    for (int q = 0; q < 4 && i + 16 * q < row.n; ++q) {
      const int64_t at = i + 16 * q;
      if (at >= group_end) {
        ++group_index;
        group_end += row.group;
        scale = _mm512_set1_ps(half_at(row.scales, group_index));
        if (row.zeros != nullptr) zero = _mm512_set1_ps(static_cast<float>(row.zeros[group_index]));
        if (row.half_zeros != nullptr) zero = _mm512_set1_ps(half_at(row.half_zeros, group_index));
      }
      const __m512 code = _mm512_cvtepi32_ps(quarter_avx512(codes, q));
      const __m512 result = _mm512_mul_ps(scale, _mm512_sub_ps(code, zero));
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
