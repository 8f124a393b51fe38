// SPDX-License-Identifier: Apache-2.0
// A line of 64 codes (level_codes.h) as what they stand for, in a register.
#pragma once

#include "kernels/intrinsics.h"
#include "kernels/level_codes.h"

namespace quern {

template <int kBits>
class LevelLines {
 public:
  explicit LevelLines(const LevelCodes& from)
      : codes_(from.codes), high_(from.codes + from.n / 4), table_(_mm512_setzero_si512()) {
    if constexpr (kBits == 8) return;
    // Without a table a code stands for itself.
    const __m128i each = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto used = static_cast<__mmask16>((uint64_t{1} << (kBits < 8 ? 1 << kBits : 0)) - 1);
    table_ = _mm512_broadcast_i32x4(from.table != nullptr ? _mm_maskz_loadu_epi8(used, from.table)
                                                          : each);
  }

  [[gnu::always_inline]] inline __m512i operator[](int64_t line) const {
    if constexpr (kBits == 8) return _mm512_loadu_si512(codes_ + 64 * line);
    return _mm512_shuffle_epi8(table_, code(line));
  }

 private:
  [[gnu::always_inline]] inline __m512i code(int64_t line) const {
    if constexpr (kBits == 1) return _mm512_maskz_set1_epi8(bits_of(codes_, line), 1);
    if constexpr (kBits == 2) return line_of_two(line);
    if constexpr (kBits == 4) return line_of_four(line);
    const __m512i low = line_of_two(line);
    return _mm512_mask_add_epi8(low, bits_of(high_, line), low, _mm512_set1_epi8(4));
  }

  // The bits of a plane of one as a mask of 64 bytes.
  static __mmask64 bits_of(const std::byte* plane, int64_t line) {
    uint64_t bits;
    __builtin_memcpy(&bits, plane + line * 8, 8);
    return bits;
  }

  // Sixteen bytes four times, each time further down by two bits; what comes in from the byte above
  // lies above the mask.
  [[gnu::always_inline]] inline __m512i line_of_two(int64_t line) const {
    const auto* from = reinterpret_cast<const __m128i*>(codes_ + line * 16);
    const __m512i down = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(from));
    return _mm512_and_si512(_mm512_srlv_epi32(all, down), _mm512_set1_epi8(3));
  }

  [[gnu::always_inline]] inline __m512i line_of_four(int64_t line) const {
    const auto* from = reinterpret_cast<const __m256i*>(codes_ + line * 32);
    const __m512i down = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    const __m512i twice = _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
    const __m512i all =
        _mm512_permutexvar_epi64(twice, _mm512_castsi256_si512(_mm256_loadu_si256(from)));
    return _mm512_and_si512(_mm512_srlv_epi32(all, down), _mm512_set1_epi8(15));
  }

  const std::byte *codes_, *high_;
  __m512i table_;
};

}  // namespace quern
