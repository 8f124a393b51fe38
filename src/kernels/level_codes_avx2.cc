// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/level_codes.h"

namespace quern {
namespace {

__m128i load(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Sixteen bits as bytes of 0 or 1.
__m128i bits_at(const std::byte* from) {
  uint16_t both;
  std::memcpy(&both, from, 2);
  const __m128i twice = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m128i each = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m128i bytes = _mm_shuffle_epi8(_mm_set1_epi16(static_cast<int16_t>(both)), twice);
  const __m128i is_set = _mm_cmpeq_epi8(_mm_and_si128(bytes, each), each);
  return _mm_and_si128(is_set, _mm_set1_epi8(1));
}

// Sixteen codes, part `part` of a line.
template <int kBits>
[[gnu::always_inline]] inline __m128i codes_at(const LevelCodes& from, int64_t line, int part) {
  if constexpr (kBits == 1) return bits_at(from.codes + line * 8 + part * 2);
  if constexpr (kBits == 4) {
    const __m128i both = load(from.codes + line * 32 + part / 2 * 16);
    return _mm_and_si128(_mm_srli_epi16(both, part % 2 * 4), _mm_set1_epi8(15));
  }
  const __m128i all = load(from.codes + line * 16);
  const __m128i low = _mm_and_si128(_mm_srli_epi16(all, part * 2), _mm_set1_epi8(3));
  if constexpr (kBits == 2) return low;
  return _mm_or_si128(low,
                      _mm_slli_epi16(bits_at(from.codes + from.n / 4 + line * 8 + part * 2), 2));
}

}  // namespace

void unpack_level_codes_avx2(const LevelCodes& from, uint8_t* bytes) {
  if (from.bits == 8) return void(std::memcpy(bytes, from.codes, static_cast<size_t>(from.n)));
  alignas(16) uint8_t table[16];
  for (uint8_t i = 0; i < 16; ++i) table[i] = i;
  if (from.table != nullptr) std::copy_n(from.table, size_t{1} << from.bits, table);
  const __m128i stands_for = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  with_level_bits(from.bits, [&](auto bits) {
    for (int64_t line = 0; line < from.n / 64; ++line, bytes += 64) {
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const __m128i code = codes_at<decltype(bits)::value>(from, line, part);
        auto* const to = reinterpret_cast<__m128i*>(bytes + 16 * part);
        _mm_storeu_si128(to, _mm_shuffle_epi8(stands_for, code));
      }
    }
  });
}

}  // namespace quern
