// SPDX-License-Identifier: Apache-2.0
// Decoder: eight coordinates of a point are one load of 16 bytes of halves, or of 8 signed bytes.
#include "codecs/additive.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// Eight coordinates from place on, as floats before their unit.
template <bool kInt8>
__m256 eight(const std::byte* points, int64_t place) {
  if constexpr (kInt8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(points + place));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  } else {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(points + 2 * place)));
  }
}

template <bool kInt8>
void decode(const AdditiveRow& row, float* dst) {
  const __m256 scale = _mm256_set1_ps(row.scale);
  const int64_t stride = row.k * row.dim;
  const uint16_t* codes = row.codes;
  for (int64_t i = 0; i < row.n; codes += row.books) {
    for (int t = 0; t < row.dim && i < row.n; t += 8, i += 8) {
      __m256 sum = _mm256_setzero_ps();
      for (int m = 0; m < row.books; ++m) {
        __m256 term = eight<kInt8>(row.points, m * stride + codes[m] * row.dim + t);
        if constexpr (kInt8) term = _mm256_mul_ps(term, _mm256_set1_ps(row.units[m]));
        sum = m == 0 ? term : _mm256_add_ps(sum, term);
      }
      const auto mask = static_cast<__mmask8>(row.n - i < 8 ? (1u << (row.n - i)) - 1 : 0xff);
      _mm256_mask_storeu_ps(dst + i, mask, _mm256_mul_ps(scale, sum));
    }
  }
}

}  // namespace

void additive_decode_avx512(const AdditiveRow& row, float* dst) {
  if (row.units != nullptr) {
    decode<true>(row, dst);
  } else {
    decode<false>(row, dst);
  }
}

}  // namespace quern
