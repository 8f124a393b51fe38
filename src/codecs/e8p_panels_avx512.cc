// SPDX-License-Identifier: Apache-2.0
// The codes of 32 blocks of 16 rows are turned as 32-bit lanes, so that a vector has two blocks of
// each row, and the four vectors of a panel that they make need bits of their own lanes only. A
// multishift cuts out the magnitudes, another the signs; with the shift of a block they are an
// index of seven bits, whose level one permute looks up.
#include <algorithm>

#include "base/checked.h"
#include "codecs/byte_table_avx512.h"
#include "codecs/e8p.h"
#include "codecs/panel_bytes_avx512.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// Bits of an index: 0 and 1 the magnitude, 5 whether 1/4 is taken, 6 whether it is negated.
constexpr uint8_t kMinus = 32, kNegated = 64;

// Byte b of each 32-bit lane, four times.
constexpr PanelBytes spread_of(int b) {
  return panel_bytes([=](int i) { return i % 16 / 4 * 4 + b; });
}
constexpr PanelBytes kSpread[4] = {spread_of(0), spread_of(1), spread_of(2), spread_of(3)};

// Where the bits of four coordinates of two rows begin in a 64-bit lane, less `before`: those of
// vector `v` of a pair of blocks, `bits` each.
constexpr PanelBytes shifts_of(int v, int bits, int before) {
  return panel_bytes([=](int i) {
    return i % 8 / 4 * 32 + v / 2 * 16 + v % 2 * 4 * bits + i % 4 * bits - before;
  });
}
constexpr PanelBytes kFields[4] = {shifts_of(0, 2, 0), shifts_of(1, 2, 0), shifts_of(2, 2, 0),
                                   shifts_of(3, 2, 0)};
constexpr PanelBytes kSigns[4] = {shifts_of(0, 1, 6), shifts_of(1, 1, 6), shifts_of(2, 1, 6),
                                  shifts_of(3, 1, 6)};

// The quarters of an index, mod 64.
constexpr int quarters_of(int index) {
  const int magnitude = 2 + 4 * (index % 4);
  return ((index & kNegated) != 0 ? -magnitude : magnitude) + ((index & kMinus) != 0 ? -1 : 1);
}
constexpr PanelBytes kQuarters[2] = {panel_bytes([](int i) { return quarters_of(i) & 63; }),
                                     panel_bytes([](int i) { return quarters_of(64 + i) & 63; })};

constexpr PanelBytes kCoordinate = panel_bytes([](int i) { return i % 4 * 64; });

// 16-bit words, of which the low bits of each byte hold the parity of the bits above them too.
inline __m512i xor_shifted(__m512i x, int n) {
  return _mm512_xor_si512(x, _mm512_srli_epi16(x, static_cast<unsigned>(n)));
}

class Points {
 public:
  // `levels` of quarters mod 64.
  Points(const E8pTables& t, const uint8_t* levels) {
    const __m512i table = _mm512_load_si512(levels);
    for (int i = 0; i < 2; ++i) levels_[i] = _mm512_permutexvar_epi8(kQuarters[i].load(), table);
    for (int i = 0; i < 8; ++i) rows_[i] = _mm512_load_si512(t.packed + 32 * i);
  }

  // Two blocks, four vectors of a panel.
  void write(__m512i codes, __m512i out[4]) const {
    const __m512i words = row_words(codes);
    const __m512i sign_bits = _mm512_and_si512(codes, _mm512_set1_epi16(255));
    // Parities: of the low bits of the fields, which is that of the row's sum; of the signs.
    const __m512i low = _mm512_and_si512(words, _mm512_set1_epi16(0x5555));
    const __m512i row_odd = xor_shifted(xor_shifted(xor_shifted(low, 8), 4), 2);
    const __m512i odd = _mm512_and_si512(xor_shifted(xor_shifted(xor_shifted(sign_bits, 4), 2), 1),
                                         _mm512_set1_epi16(1));
    const __m512i last = _mm512_slli_epi16(_mm512_and_si512(row_odd, _mm512_set1_epi16(1)), 7);
    const __m512i negated = _mm512_ternarylogic_epi32(sign_bits, odd, last, 0x96);  // xor
    const __m512i minus = _mm512_slli_epi16(odd, 5);
    for (int v = 0; v < 4; ++v) {
      const __m512i field = _mm512_multishift_epi64_epi8(kFields[v].load(), words);
      const __m512i sign = _mm512_multishift_epi64_epi8(kSigns[v].load(), negated);
      const __m512i shift = _mm512_shuffle_epi8(minus, kSpread[v / 2 * 2].load());
      // mask ? first : second
      const __m512i top = _mm512_ternarylogic_epi32(_mm512_set1_epi8(kNegated), sign, shift, 0xca);
      const __m512i index =
          _mm512_ternarylogic_epi32(_mm512_set1_epi8(kNegated | kMinus), top, field, 0xca);
      out[v] = _mm512_permutex2var_epi8(levels_[0], index, levels_[1]);
    }
  }

 private:
  __m512i row_words(__m512i codes) const {
    const __m512i row = _mm512_srli_epi16(codes, 8);
    const __mmask32 bit6 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1 << 14));
    const __mmask32 bit7 = _mm512_movepi16_mask(codes);
    const __m512i a = _mm512_permutex2var_epi16(rows_[0], row, rows_[1]);
    const __m512i b = _mm512_permutex2var_epi16(rows_[2], row, rows_[3]);
    const __m512i c = _mm512_permutex2var_epi16(rows_[4], row, rows_[5]);
    const __m512i d = _mm512_permutex2var_epi16(rows_[6], row, rows_[7]);
    return _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(a, bit6, b), bit7,
                                 _mm512_mask_mov_epi16(c, bit6, d));
  }

  __m512i levels_[2];
  __m512i rows_[8];  // packed rows, 32 a register
};

// Calls write(b, codes): `codes` has blocks b and b + 1 of 16 rows.
template <class Write>
void for_pairs(const uint8_t* codes, const E8pBlocks& blocks, const Write& write) {
  for (int64_t first = 0; first < blocks.n_blocks; first += 32) {
    const int64_t n = std::min<int64_t>(32, blocks.n_blocks - first);
    const auto present = static_cast<__mmask32>((uint64_t{1} << n) - 1);
    __m512i rows[16];
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t place = std::min(r, blocks.n_rows - 1) * blocks.stride + first;
      prefetch_next_panel(codes + 2 * place, 2 * blocks.stride);
      rows[r] = _mm512_maskz_loadu_epi16(present, codes + 2 * place);
    }
    transpose_16x16(rows);
    for (int64_t pair = 0; 2 * pair < n; ++pair) write(first + 2 * pair, rows[pair]);
  }
}

inline void add_to(uint8_t* panel, __m512i levels) {
  _mm512_storeu_si512(panel, _mm512_add_epi8(_mm512_loadu_si512(panel), levels));
}

// A point of E8 is two of less than 64 halves; a half and a coordinate are an index of a byte.
void add_e8(const E8pTables& t, const uint8_t* levels, const E8pBlocks& blocks, uint8_t* panel) {
  const ByteTable<8> halves[2] = {ByteTable<8>(t.halves[0]), ByteTable<8>(t.halves[1])};
  const __m512i of_quarters = _mm512_load_si512(levels);
  alignas(64) uint8_t coordinates[4][64];
  for (int i = 0; i < 4; ++i) {
    _mm512_store_si512(coordinates[i],
                       _mm512_permutexvar_epi8(_mm512_load_si512(t.half_points[i]), of_quarters));
  }
  const ByteTable<8> table(coordinates);
  for (int64_t first = 0; first < blocks.n_blocks; first += 64) {
    const int64_t n = std::min<int64_t>(64, blocks.n_blocks - first);
    const __mmask64 present = ~uint64_t{0} >> (64 - n);
    __m512i rows[16];
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t place = std::min(r, blocks.n_rows - 1) * blocks.stride + first;
      prefetch_next_panel(blocks.residual + place, blocks.stride);
      rows[r] = _mm512_maskz_loadu_epi8(present, blocks.residual + place);
    }
    transpose_16x16(rows);
    for (int64_t b = 0; b < n; ++b) {
      for (int half = 0; half < 2; ++half) {
        const __m512i id = _mm512_shuffle_epi8(halves[half](rows[b / 4]), kSpread[b % 4].load());
        add_to(panel + (2 * (first + b) + half) * 64,
               table(_mm512_or_si512(id, kCoordinate.load())));
      }
    }
  }
}

}  // namespace

void e8p_panel_avx512(const E8pTables& t, const E8pLevels& levels, const E8pBlocks& blocks,
                      uint8_t* panel) {
  const Points points(t, levels.point);
  for_pairs(blocks.codes, blocks, [&](int64_t b, __m512i codes) {
    __m512i out[4];
    points.write(codes, out);
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(panel + (2 * b + i) * 64, out[i]);
  });
  if (blocks.kind == E8pResidual::kE8) add_e8(t, levels.residual, blocks, panel);
  if (blocks.kind != E8pResidual::kE8p) return;
  const Points residuals(t, levels.residual);
  for_pairs(blocks.residual, blocks, [&](int64_t b, __m512i codes) {
    __m512i out[4];
    residuals.write(codes, out);
    for (int i = 0; i < 4; ++i) add_to(panel + (2 * b + i) * 64, out[i]);
  });
}

}  // namespace quern
