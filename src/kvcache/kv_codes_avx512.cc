// SPDX-License-Identifier: Apache-2.0
#include "kernels/intrinsics.h"
#include "kvcache/kv_codes.h"

namespace quern {
namespace {

// The bits of a plane of one as a mask of 64 bytes.
inline __mmask64 line_bits(const std::byte* plane, int64_t line) {
  uint64_t bits;
  __builtin_memcpy(&bits, plane + line * 8, 8);
  return bits;
}

// Sixteen bytes four times, each time further down by two bits; what comes in from the byte above
// lies above the mask.
inline __m512i line_of_two(const std::byte* plane, int64_t line) {
  const auto* from = reinterpret_cast<const __m128i*>(plane + line * 16);
  const __m512i down = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(from));
  return _mm512_and_si512(_mm512_srlv_epi32(all, down), _mm512_set1_epi8(3));
}

inline __m512i line_of_four(const std::byte* plane, int64_t line) {
  const auto* from = reinterpret_cast<const __m256i*>(plane + line * 32);
  const __m512i down = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
  const __m512i twice = _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
  const __m512i all =
      _mm512_permutexvar_epi64(twice, _mm512_castsi256_si512(_mm256_loadu_si256(from)));
  return _mm512_and_si512(_mm512_srlv_epi32(all, down), _mm512_set1_epi8(15));
}

template <int kBits>
void unpack(const KvCodes& from, uint8_t* bytes) {
  const std::byte *codes = from.codes, *high = codes + from.n / 4;
  const bool has_table = from.table != nullptr;
  __m512i levels = _mm512_setzero_si512();
  if (has_table) {
    const auto used = static_cast<__mmask16>((uint64_t{1} << (kBits < 8 ? 1 << kBits : 0)) - 1);
    levels = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(used, from.table));
  }
  // A line takes at most 64 bytes, and no more for its scales.
  const int64_t n_lines = from.n / 64, n_next = from.next != nullptr ? from.n_next : 0;
  for (int64_t line = 0; line < n_lines; ++line) {
    if (line * 64 < n_next) __builtin_prefetch(from.next + line * 64);
    if (kBits == 8 && (n_lines + line) * 64 < n_next) {
      __builtin_prefetch(from.next + (n_lines + line) * 64);
    }
    __m512i code;
    if constexpr (kBits == 1) code = _mm512_maskz_set1_epi8(line_bits(codes, line), 1);
    if constexpr (kBits == 2 || kBits == 3) code = line_of_two(codes, line);
    if constexpr (kBits == 3) {
      code = _mm512_mask_add_epi8(code, line_bits(high, line), code, _mm512_set1_epi8(4));
    }
    if constexpr (kBits == 4) code = line_of_four(codes, line);
    if constexpr (kBits == 8) code = _mm512_loadu_si512(codes + 64 * line);
    if (kBits < 8 && has_table) code = _mm512_shuffle_epi8(levels, code);
    _mm512_storeu_si512(bytes + 64 * line, code);
  }
}

}  // namespace

void unpack_kv_codes_avx512(const KvCodes& codes, uint8_t* bytes) {
  switch (codes.bits) {
    case 1:
      return unpack<1>(codes, bytes);
    case 2:
      return unpack<2>(codes, bytes);
    case 3:
      return unpack<3>(codes, bytes);
    case 4:
      return unpack<4>(codes, bytes);
    default:
      return unpack<8>(codes, bytes);
  }
}

}  // namespace quern
