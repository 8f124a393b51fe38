// SPDX-License-Identifier: Apache-2.0
// 512 columns of 16 rows are turned as 32-bit lanes, so that a lane has 32 columns of its row. A
// multishift brings four of them to the bytes of the lane; bits of two planes and the row's place
// in its 128-bit lane are the index of a byte shuffle in the levels of the group.
#include <algorithm>

#include "codecs/bit_planes.h"
#include "codecs/panel_bytes_avx512.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// Bits of columns 4 v to 4 v + 3 to bit `to` of their bytes.
constexpr PanelBytes shifts_of(int v, int to) {
  return panel_bytes([=](int i) { return i % 8 / 4 * 32 + 4 * v + i % 4 - to; });
}
constexpr PanelBytes kFirst[8] = {shifts_of(0, 0), shifts_of(1, 0), shifts_of(2, 0),
                                  shifts_of(3, 0), shifts_of(4, 0), shifts_of(5, 0),
                                  shifts_of(6, 0), shifts_of(7, 0)};
constexpr PanelBytes kSecond[8] = {shifts_of(0, 1), shifts_of(1, 1), shifts_of(2, 1),
                                   shifts_of(3, 1), shifts_of(4, 1), shifts_of(5, 1),
                                   shifts_of(6, 1), shifts_of(7, 1)};
constexpr PanelBytes kRowInLane = panel_bytes([](int i) { return i % 16 / 4 * 4; });

// Of columns [j, j + 512).
void load_bits(const BitPanel& rows, int plane, int64_t j, __m512i (&bits)[16]) {
  const int64_t n = std::min<int64_t>(64, (rows.n_cols - j + 7) / 8);
  const __mmask64 present = ~uint64_t{0} >> (64 - n);
  for (int64_t r = 0; r < 16; ++r) {
    const int64_t place = std::min(r, rows.n_rows - 1) * rows.stride + j / 8;
    prefetch_next_panel(rows.planes[plane] + place, rows.stride);
    bits[r] = _mm512_maskz_loadu_epi8(present, rows.planes[plane] + place);
  }
  transpose_16x16(bits);
}

template <int kPlanes>
void write_panel(const BitPanel& rows, uint8_t* levels) {
  constexpr int64_t kTable = 64 * (kPlanes > 2 ? 2 : 1);
  const __m512i row_in_lane = kRowInLane.load();
  const __m512i code_bits = _mm512_set1_epi8(kPlanes == 1 ? 1 : 3), first_bit = _mm512_set1_epi8(1);
  const uint8_t* table = rows.tables;
  int64_t table_end = rows.group;
  for (int64_t j0 = 0; j0 < rows.n_cols; j0 += 512) {
    __m512i first[16], second[16];
    load_bits(rows, 0, j0, first);
    if (kPlanes > 1) load_bits(rows, 1, j0, second);
    const int64_t end = std::min(j0 + 512, rows.n_cols);
    for (int64_t j = j0; j < end; j += 16) {
      if (j >= table_end) {
        table += kTable;
        table_end += rows.group;
      }
      const __m512i low = _mm512_loadu_si512(table);
      const int64_t lane = (j - j0) / 32, v0 = j % 32 / 4;
      for (int64_t v = v0; v < v0 + 4; ++v, levels += 64) {
        __m512i code = _mm512_multishift_epi64_epi8(kFirst[v].load(), first[lane]);
        if (kPlanes > 1) {
          code = _mm512_ternarylogic_epi32(
              first_bit, code, _mm512_multishift_epi64_epi8(kSecond[v].load(), second[lane]),
              0xca);  // first_bit ? code : second
        }
        const __m512i index = _mm512_ternarylogic_epi32(code, code_bits, row_in_lane, 0xea);
        __m512i level = _mm512_shuffle_epi8(low, index);
        if (kPlanes > 2 && j + 4 * (v - v0) < end) {
          const int64_t column = j + 4 * (v - v0);
          const auto shared = static_cast<uint64_t>(rows.planes[2][column / 8] >> column % 8 & 15);
          level = _mm512_mask_shuffle_epi8(level, shared * 0x1111111111111111u,
                                           _mm512_loadu_si512(table + 64), index);
        }
        _mm512_storeu_si512(levels, level);
      }
    }
  }
}

}  // namespace

void bit_panel_avx512(const BitPanel& rows, uint8_t* levels) {
  if (rows.n_planes == 1) return write_panel<1>(rows, levels);
  if (rows.n_planes == 2) return write_panel<2>(rows, levels);
  write_panel<3>(rows, levels);
}

}  // namespace quern
