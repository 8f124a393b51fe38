// SPDX-License-Identifier: Apache-2.0
// Codes of up to four bits are looked up by a byte shuffle; wider ones byte by byte.
#include "codecs/interleaved.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// The zeros of 8 rows, each in the four bytes of its row.
inline __m256i spread_zeros(const uint8_t* zeros) {
  const __m256i wide =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
  return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
}

// What a plane of this width has of 32 bytes of quad q, masked.
inline __m256i fields(const uint8_t* plane, int width, int64_t q, int half) {
  const int64_t per_line = 8 / width;
  const __m256i line =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane + q / per_line * 64 + 32 * half));
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(q % per_line) * width);
  return _mm256_and_si256(_mm256_srl_epi16(line, shift),
                          _mm256_set1_epi8(static_cast<char>((1 << width) - 1)));
}

}  // namespace

void interleaved_levels_avx2(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  if (panel.low_bits + panel.high_bits > 4) return interleaved_levels_ref(panel, n_quads, levels);
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel.levels)));
  const __m128i above = _mm_cvtsi32_si128(panel.low_bits);
  for (int64_t q = 0; q < n_quads; ++q, levels += 64) {
    for (int half = 0; half < 2; ++half) {
      __m256i code = fields(panel.low, panel.low_bits, q, half);
      if (panel.high != nullptr) {
        const __m256i high = fields(panel.high, panel.high_bits, q, half);
        code = _mm256_or_si256(code, _mm256_sll_epi16(high, above));
      }
      __m256i level = _mm256_shuffle_epi8(table, code);
      if (panel.zeros != nullptr) {
        const uint8_t* zeros = panel.zeros + q * 4 / panel.group * kPanelRows + 8 * half;
        level = _mm256_sub_epi8(level, spread_zeros(zeros));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + 32 * half), level);
    }
  }
}

}  // namespace quern
