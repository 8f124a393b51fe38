// SPDX-License-Identifier: Apache-2.0
// Lines of codes (kv_codes.h) and halves as vectors; for files that are compiled for AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

// Sixteen halves, and one for all sixteen.
inline __m512 kv_halves(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512 kv_half(const std::byte* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, 2);
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(bits)));
}

struct KvLine {
  __m512i part[4];
};

// The 64 codes of a line; `high` is the plane of one bit where there are three.
template <int kBits>
inline KvLine kv_line_codes(const std::byte* low, const std::byte* high, int64_t line) {
  const auto sixteen = [](const std::byte* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  if constexpr (kBits == 8) {
    const std::byte* from = low + line * 64;
    return {{sixteen(from), sixteen(from + 16), sixteen(from + 32), sixteen(from + 48)}};
  } else if constexpr (kBits == 4) {
    const __m512i mask = _mm512_set1_epi32(15);
    const __m512i a = sixteen(low + line * 32), b = sixteen(low + line * 32 + 16);
    return {{_mm512_and_si512(a, mask), _mm512_srli_epi32(a, 4), _mm512_and_si512(b, mask),
             _mm512_srli_epi32(b, 4)}};
  } else if constexpr (kBits == 1) {
    uint64_t bits;
    __builtin_memcpy(&bits, low + line * 8, 8);
    const auto part = [&](int i) {
      return _mm512_maskz_set1_epi32(static_cast<__mmask16>(bits >> (16 * i)), 1);
    };
    return {{part(0), part(1), part(2), part(3)}};
  } else {
    const __m512i mask = _mm512_set1_epi32(3), a = sixteen(low + line * 16);
    KvLine codes = {{_mm512_and_si512(a, mask), _mm512_and_si512(_mm512_srli_epi32(a, 2), mask),
                     _mm512_and_si512(_mm512_srli_epi32(a, 4), mask), _mm512_srli_epi32(a, 6)}};
    if constexpr (kBits == 3) {
      uint64_t bits;
      __builtin_memcpy(&bits, high + line * 8, 8);
      const __m512i four = _mm512_set1_epi32(4);
      for (int i = 0; i < 4; ++i) {
        codes.part[i] = _mm512_mask_or_epi32(
            codes.part[i], static_cast<__mmask16>(bits >> (16 * i)), codes.part[i], four);
      }
    }
    return codes;
  }
}

}  // namespace quern
