// SPDX-License-Identifier: Apache-2.0
// A line of codes becomes a line of levels for each code in a byte: shift, look up, store. Bits
// above a code are those of its neighbours; the table is repeated, so that they do not matter.
#include "codecs/byte_table_avx512.h"
#include "codecs/interleaved.h"
#include "kernels/fetch_ahead.h"

namespace quern {
namespace {

// The zeros of 16 rows, each in the four bytes of its row.
inline __m512i spread_zeros(const uint8_t* zeros) {
  const __m512i wide =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  return _mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101));
}

struct Identity {
  __m512i operator()(__m512i index) const { return index; }
};

template <int kLow, int kHigh, class Table>
void write_levels(const InterleavedPanel& panel, const Table& table, int64_t n_quads,
                  uint8_t* levels) {
  constexpr int kLowLine = 8 / kLow, kHighLine = kHigh > 0 ? 8 / kHigh : 1;
  constexpr int kQuads = kHighLine > kLowLine ? kHighLine : kLowLine;  // that end a line of both
  const uint8_t *low = panel.low, *high = panel.high, *zeros = panel.zeros;
  const __m512i low_mask = _mm512_set1_epi8(static_cast<char>((1 << kLow) - 1));
  __m512i zero = _mm512_setzero_si512(), low_line = zero, high_line = zero;
  int64_t group_end = 0;
  const auto quad = [&](int k, int64_t q) {
    if (k % kLowLine == 0) {
      low_line = _mm512_loadu_si512(low);
      fetch_ahead(low + kFetchAhead);
      low += 64;
    }
    __m512i code = _mm512_srli_epi16(low_line, static_cast<unsigned>(k % kLowLine * kLow));
    if constexpr (kHigh > 0) {
      if (k % kHighLine == 0) {
        high_line = _mm512_loadu_si512(high);
        fetch_ahead(high + kFetchAhead);
        high += 64;
      }
      const int shift = k % kHighLine * kHigh - kLow;
      const __m512i above = shift < 0 ? _mm512_slli_epi16(high_line, static_cast<unsigned>(-shift))
                                      : _mm512_srli_epi16(high_line, static_cast<unsigned>(shift));
      code = _mm512_ternarylogic_epi32(low_mask, code, above, 0xca);  // low_mask ? code : above
    }
    __m512i level = table(code);
    if (zeros != nullptr) {
      if (4 * q >= group_end) {
        zero = spread_zeros(zeros);
        zeros += kPanelRows;
        group_end += panel.group;
      }
      level = _mm512_sub_epi8(level, zero);
    }
    _mm512_storeu_si512(levels + 64 * q, level);
  };
  int64_t q = 0;
  for (; q + kQuads <= n_quads; q += kQuads) {
#pragma GCC unroll 8
    for (int k = 0; k < kQuads; ++k) quad(k, q + k);
  }
  for (int k = 0; q < n_quads; ++k, ++q) quad(k, q);
}

}  // namespace

void interleaved_levels_avx512(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  const int bits = panel.low_bits + panel.high_bits;
  const ByteTable<6> table(panel.levels);
  switch (bits) {
    case 1:
      return write_levels<1, 0>(panel, table, n_quads, levels);
    case 2:
      return write_levels<2, 0>(panel, table, n_quads, levels);
    case 3:
      return write_levels<2, 1>(panel, table, n_quads, levels);
    case 4:
      return write_levels<4, 0>(panel, table, n_quads, levels);
    case 5:
      return write_levels<4, 1>(panel, table, n_quads, levels);
    case 6:
      return write_levels<4, 2>(panel, table, n_quads, levels);
    default:
      break;
  }
  bool is_identity = true;
  for (unsigned i = 0; i < 256; ++i) is_identity = is_identity && panel.levels[i] == i;
  if (is_identity) return write_levels<8, 0>(panel, Identity(), n_quads, levels);
  write_levels<8, 0>(panel, ByteTable<8>(panel.levels), n_quads, levels);
}

}  // namespace quern
