// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "kernels/intrinsics.h"
#include "kvcache/kv_int.h"

namespace quern {
namespace {

inline __m512 halves(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 half(const std::byte* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, 2);
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(bits)));
}

// The 64 codes of a line.
template <int kBits>
inline std::array<__m512i, 4> line_codes(const std::byte* low, const std::byte* high,
                                         int64_t line) {
  const auto sixteen = [](const std::byte* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  if constexpr (kBits == 8) {
    const std::byte* from = low + line * 64;
    return {sixteen(from), sixteen(from + 16), sixteen(from + 32), sixteen(from + 48)};
  } else if constexpr (kBits == 4) {
    const __m512i mask = _mm512_set1_epi32(15);
    const __m512i a = sixteen(low + line * 32), b = sixteen(low + line * 32 + 16);
    return {_mm512_and_si512(a, mask), _mm512_srli_epi32(a, 4), _mm512_and_si512(b, mask),
            _mm512_srli_epi32(b, 4)};
  } else if constexpr (kBits == 1) {
    uint64_t bits;
    __builtin_memcpy(&bits, low + line * 8, 8);
    const auto part = [&](int i) {
      return _mm512_maskz_set1_epi32(static_cast<__mmask16>(bits >> (16 * i)), 1);
    };
    return {part(0), part(1), part(2), part(3)};
  } else {
    const __m512i mask = _mm512_set1_epi32(3), a = sixteen(low + line * 16);
    std::array<__m512i, 4> codes = {
        _mm512_and_si512(a, mask), _mm512_and_si512(_mm512_srli_epi32(a, 2), mask),
        _mm512_and_si512(_mm512_srli_epi32(a, 4), mask), _mm512_srli_epi32(a, 6)};
    if constexpr (kBits == 3) {
      uint64_t bits;
      __builtin_memcpy(&bits, high + line * 8, 8);
      const __m512i four = _mm512_set1_epi32(4);
      for (int i = 0; i < 4; ++i) {
        codes[i] = _mm512_mask_or_epi32(codes[i], static_cast<__mmask16>(bits >> (16 * i)),
                                        codes[i], four);
      }
    }
    return codes;
  }
}

template <int kBits>
void decode(const KvIntShape& s, const std::byte* page, float* x) {
  const std::byte* scales = page + s.code_bytes();
  const std::byte* least = scales + 2 * s.n_params();
  const std::byte* high = page + s.rows * s.cols / 4;
  const int64_t per_row = s.cols / s.group;
  int64_t i = 0, j = 0;  // of the next sixteen
  for (int64_t line = 0; line < s.rows * s.cols / 64; ++line) {
    const std::array<__m512i, 4> codes = line_codes<kBits>(page, high, line);
    for (const __m512i sixteen : codes) {
      __m512 scale, base;
      if (s.is_along_rows) {
        const int64_t p = i * per_row + j / s.group;
        scale = half(scales + 2 * p);
        base = half(least + 2 * p);
      } else {
        const int64_t p = i / s.group * s.cols + j;
        scale = halves(scales + 2 * p);
        base = halves(least + 2 * p);
      }
      _mm512_storeu_ps(x, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sixteen), scale, base));
      x += 16;
      j += 16;
      if (j == s.cols) {
        j = 0;
        ++i;
      }
    }
  }
}

}  // namespace

void decode_kv_int_avx512(const KvIntShape& shape, const std::byte* page, float* x) {
  switch (shape.bits) {
    case 1:
      return decode<1>(shape, page, x);
    case 2:
      return decode<2>(shape, page, x);
    case 3:
      return decode<3>(shape, page, x);
    case 4:
      return decode<4>(shape, page, x);
    default:
      return decode<8>(shape, page, x);
  }
}

}  // namespace quern
