// SPDX-License-Identifier: Apache-2.0
// 64 bits of a plane are a mask of the bytes to which its power of two is added. A block has its
// levels in fours of its rows: of a column's codes a vector holds sixteen fours, and sixteen such
// vectors are transposed; of a row's codes it holds one level of each four, and four are shuffled.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/level_planes.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// Bits i to i + 63 of a plane of n, zeros behind the last. Nothing outside of the plane is read.
[[gnu::always_inline]] inline uint64_t bits_from(const std::byte* plane, int64_t n, int64_t i) {
  uint64_t bits = 0;
  const int64_t missing = i + 64 - n;
  if (missing <= 0) {
    std::memcpy(&bits, plane + i / 8, 8);
  } else if (n >= 64) {
    std::memcpy(&bits, plane + n / 8 - 8, 8);
    bits >>= missing;
  } else {
    std::memcpy(&bits, plane, static_cast<size_t>(n / 8));
  }
  return bits;
}

// 64 levels from code i on; behind the last code, any.
[[gnu::always_inline]] inline __m512i levels_from(const PlaneRow& row, int64_t n, int64_t i,
                                                  int zero) {
  __m512i level = _mm512_set1_epi8(static_cast<char>(zero - (1 << row.width) / 2));
  const std::byte* plane = row.planes;
  for (int bit = row.width - 1; bit >= 0; --bit, plane += n / 8) {
    const __m512i power = _mm512_set1_epi8(static_cast<char>(1 << bit));
    level = _mm512_mask_add_epi8(level, bits_from(plane, n, i), level, power);
  }
  return level;
}

void unpack_columns(const PlaneRows& from, int zero, uint8_t* levels) {
  for (int64_t r = 0; r < from.n_rows; r += 16) {
    for (int64_t i = 0; i < from.n; i += 64) {
      __m512i quads[16];
      for (int64_t c = 0; c < 16; ++c) quads[c] = levels_from(from.rows[r + c], from.n, i, zero);
      transpose_16x16(quads);
      const int64_t n_quads = std::min<int64_t>(16, (from.n - i) / 4);
      for (int64_t q = 0; q < n_quads; ++q) {
        _mm512_storeu_si512(levels + level_place(from.n_rows, i + 4 * q, r), quads[q]);
      }
    }
  }
}

void unpack_rows(const PlaneRows& from, int zero, uint8_t* levels) {
  for (int64_t r = 0; r < from.n_rows; r += 4) {
    for (int64_t i = 0; i < from.n; i += 64) {
      __m512i row[4];
      for (int64_t k = 0; k < 4; ++k) row[k] = levels_from(from.rows[r + k], from.n, i, zero);
      const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]);
      const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]);
      const __m512i high01 = _mm512_unpackhi_epi8(row[0], row[1]);
      const __m512i high23 = _mm512_unpackhi_epi8(row[2], row[3]);
      // Lane l of quads[k] has columns 16 l + 4 k and the next three.
      const __m512i quads[4] = {
          _mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
          _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
      const __m512i a = _mm512_shuffle_i32x4(quads[0], quads[1], 0x88);
      const __m512i b = _mm512_shuffle_i32x4(quads[2], quads[3], 0x88);
      const __m512i c = _mm512_shuffle_i32x4(quads[0], quads[1], 0xdd);
      const __m512i d = _mm512_shuffle_i32x4(quads[2], quads[3], 0xdd);
      const __m512i lanes[4] = {_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(c, d, 0x88),
                                _mm512_shuffle_i32x4(a, b, 0xdd), _mm512_shuffle_i32x4(c, d, 0xdd)};
      const int64_t n_lanes = std::min<int64_t>(4, (from.n - i) / 16);
      for (int64_t l = 0; l < n_lanes; ++l) {
        _mm512_storeu_si512(levels + level_place(from.n, r, i + 16 * l), lanes[l]);
      }
    }
  }
}

}  // namespace

void unpack_plane_rows_avx512(const PlaneRows& from, LevelBlock::Share share, int zero,
                              uint8_t* levels) {
  (share == LevelBlock::Share::kDown ? unpack_columns : unpack_rows)(from, zero, levels);
}

}  // namespace quern
