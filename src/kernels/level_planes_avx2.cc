// SPDX-License-Identifier: Apache-2.0
// Sixteen codes at a time, of four rows: their bytes are spread over a vector, and each lane asks
// for its bit.
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/level_planes.h"

namespace quern {
namespace {

// Levels i to i + 15.
[[gnu::always_inline]] inline __m128i levels_from(const PlaneRow& row, int64_t n, int64_t i,
                                                  int zero) {
  const __m128i byte_of = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m128i bit_of = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  __m128i level = _mm_set1_epi8(static_cast<char>(zero - (1 << row.width) / 2));
  const std::byte* at = row.planes + i / 8;
  for (int bit = row.width - 1; bit >= 0; --bit, at += n / 8) {
    int16_t sixteen;
    std::memcpy(&sixteen, at, 2);
    const __m128i spread = _mm_shuffle_epi8(_mm_set1_epi16(sixteen), byte_of);
    const __m128i is_set = _mm_cmpeq_epi8(_mm_and_si128(spread, bit_of), bit_of);
    const __m128i power = _mm_set1_epi8(static_cast<char>(1 << bit));
    level = _mm_add_epi8(level, _mm_and_si128(is_set, power));
  }
  return level;
}

void store(uint8_t* to, __m128i levels) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels);
}

// Four rows, which are columns of the block: fours of their levels are turned.
void put_columns(const __m128i (&row)[4], int64_t step, uint8_t* levels) {
  const __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi32(row[2], row[3]);
  const __m128i high01 = _mm_unpackhi_epi32(row[0], row[1]);
  const __m128i high23 = _mm_unpackhi_epi32(row[2], row[3]);
  store(levels, _mm_unpacklo_epi64(low01, low23));
  store(levels + step, _mm_unpackhi_epi64(low01, low23));
  store(levels + 2 * step, _mm_unpacklo_epi64(high01, high23));
  store(levels + 3 * step, _mm_unpackhi_epi64(high01, high23));
}

// Four rows of the block: single levels are shuffled together.
void put_rows(const __m128i (&row)[4], uint8_t* levels) {
  const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]);
  const __m128i high01 = _mm_unpackhi_epi8(row[0], row[1]);
  const __m128i high23 = _mm_unpackhi_epi8(row[2], row[3]);
  store(levels, _mm_unpacklo_epi16(low01, low23));
  store(levels + 16, _mm_unpackhi_epi16(low01, low23));
  store(levels + 32, _mm_unpacklo_epi16(high01, high23));
  store(levels + 48, _mm_unpackhi_epi16(high01, high23));
}

}  // namespace

void unpack_plane_rows_avx2(const PlaneRows& from, LevelBlock::Share share, int zero,
                            uint8_t* levels) {
  for (int64_t r = 0; r < from.n_rows; r += 4) {
    for (int64_t i = 0; i < from.n; i += 16) {
      __m128i row[4];
      for (int64_t k = 0; k < 4; ++k) row[k] = levels_from(from.rows[r + k], from.n, i, zero);
      if (share == LevelBlock::Share::kDown) {
        put_columns(row, 4 * from.n_rows, levels + level_place(from.n_rows, i, r));
      } else {
        put_rows(row, levels + level_place(from.n, r, i));
      }
    }
  }
}

}  // namespace quern
