// SPDX-License-Identifier: Apache-2.0
// Eighty columns are sixteen bytes, five vectors. For each a shuffle brings every lane its byte; a
// product with the lane's power of three, three times what is left of it modulo 256, and a shift
// make the digit, and a permute the value.
#include <cstring>

#include "codecs/ternary.h"
#include "kernels/intrinsics.h"

namespace quern {

void trits_decode_row_avx512(const TritRow& row, float* dst) {
  alignas(64) uint8_t place[5][16];
  alignas(64) uint32_t power[5][16];
  constexpr uint32_t kPowers[5] = {1, 3, 9, 27, 81};
  for (int v = 0; v < 5; ++v) {
    for (int lane = 0; lane < 16; ++lane) {
      place[v][lane] = static_cast<uint8_t>((16 * v + lane) / 5);
      power[v][lane] = kPowers[(16 * v + lane) % 5];
    }
  }
  const __m512i octet = _mm512_set1_epi32(255);
  const int64_t n_bytes = (row.n + 4) / 5;
  int64_t group_end = 0, group_index = -1;
  __m512 values = _mm512_setzero_ps();
  for (int64_t i = 0; i < row.n; i += 80) {
    const int64_t present = n_bytes - i / 5;
    const auto in_row = static_cast<__mmask16>(present >= 16 ? 0xffff : (1u << present) - 1);
    const __m128i bytes = _mm_maskz_loadu_epi8(in_row, row.codes + i / 5);
    for (int v = 0; v < 5 && i + 16 * v < row.n; ++v) {
      const int64_t at = i + 16 * v, left = row.n - at;
      if (at >= group_end) {
        group_end += row.group;
        const float scale = row.scales[++group_index];
        alignas(64) float levels[16] = {-scale, 0, scale};
        values = _mm512_load_ps(levels);
      }
      const __m128i spread =
          _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(place[v])));
      // A byte times 81 fits 16 bits: the product of halves of lanes is that of lanes.
      const __m512i product = _mm512_and_si512(
          _mm512_mullo_epi16(_mm512_cvtepu8_epi32(spread), _mm512_load_si512(power[v])), octet);
      const __m512i digit =
          _mm512_srli_epi32(_mm512_add_epi32(product, _mm512_slli_epi32(product, 1)), 8);
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
      _mm512_mask_storeu_ps(dst + at, mask, _mm512_permutexvar_ps(digit, values));
    }
  }
}

}  // namespace quern
