// SPDX-License-Identifier: Apache-2.0
// As ternary_avx512.cc, forty columns of eight bytes at a time.
#include <algorithm>
#include <cstring>

#include "codecs/ternary.h"
#include "kernels/intrinsics.h"

namespace quern {

void trits_decode_row_avx2(const TritRow& row, float* dst) {
  alignas(16) uint8_t place[5][16] = {};
  alignas(32) uint32_t power[5][8];
  constexpr uint32_t kPowers[5] = {1, 3, 9, 27, 81};
  for (int v = 0; v < 5; ++v) {
    for (int lane = 0; lane < 8; ++lane) {
      place[v][lane] = static_cast<uint8_t>((8 * v + lane) / 5);
      power[v][lane] = kPowers[(8 * v + lane) % 5];
    }
  }
  const __m256i octet = _mm256_set1_epi32(255);
  const int64_t n_bytes = (row.n + 4) / 5;
  int64_t group_end = 0, group_index = -1;
  __m256 values = _mm256_setzero_ps();
  for (int64_t i = 0; i < row.n; i += 40) {
    uint64_t word = 0;
    std::memcpy(&word, row.codes + i / 5,
                static_cast<size_t>(std::min<int64_t>(8, n_bytes - i / 5)));
    const __m128i bytes = _mm_cvtsi64_si128(static_cast<int64_t>(word));
    for (int v = 0; v < 5 && i + 8 * v < row.n; ++v) {
      const int64_t at = i + 8 * v;
      if (at >= group_end) {
        group_end += row.group;
        const float scale = row.scales[++group_index];
        values = _mm256_setr_ps(-scale, 0, scale, 0, 0, 0, 0, 0);
      }
      const __m128i spread =
          _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(place[v])));
      const __m256i powers = _mm256_load_si256(reinterpret_cast<const __m256i*>(power[v]));
      const __m256i product =
          _mm256_and_si256(_mm256_mullo_epi16(_mm256_cvtepu8_epi32(spread), powers), octet);
      const __m256i digit =
          _mm256_srli_epi32(_mm256_add_epi32(product, _mm256_slli_epi32(product, 1)), 8);
      alignas(32) float result[8];
      _mm256_store_ps(result, _mm256_permutevar8x32_ps(values, digit));
      std::memcpy(dst + at, result,
                  static_cast<size_t>(std::min<int64_t>(8, row.n - at)) * sizeof(float));
    }
  }
}

}  // namespace quern
