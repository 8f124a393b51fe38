// SPDX-License-Identifier: Apache-2.0
// Two lines of codes are eight lines of levels. Lookups in four tables of 256 bytes and blends of
// nibbles make the bytes x of four blocks (e8p_panels.h); an unpack puts those of two blocks of two
// rows beside each other, so that a multishift brings each byte of a panel its index, of six bits.
#include "codecs/byte_table_avx512.h"
#include "codecs/e8p_panels.h"
#include "codecs/panel_bytes_avx512.h"
#include "codecs/panel_dots.h"
#include "codecs/panel_dots_avx512.h"
#include "kernels/fetch_ahead.h"

namespace quern {
namespace {

// Where the index of each byte of a panel begins in a 64-bit lane, for the block b % 2.
constexpr PanelBytes shifts_of(int b) {
  return panel_bytes([=](int i) { return i % 8 / 4 * 32 + b * 16 + i % 4 / 2 * 8 + i % 2 * 2; });
}
constexpr PanelBytes kShifts[2] = {shifts_of(0), shifts_of(1)};

// Points, or their residuals.
class Stage {
 public:
  explicit Stage(const E8pPanelTables& t)
      : magnitudes_{ByteTable<8>(t.magnitudes[0]), ByteTable<8>(t.magnitudes[1])},
        signs_{ByteTable<8>(t.signs[0]), ByteTable<8>(t.signs[1])},
        levels_{_mm512_load_si512(t.levels[0]), _mm512_load_si512(t.levels[1])} {}

  // [h][blocks 0 and 1, or 2 and 3]: both bytes x of their halves h.
  struct Words {
    __m512i at[2][2];
  };
  Words words(const uint8_t* first, const uint8_t* second) const {
    const __m512i lower = _mm512_set1_epi8(0x0f);
    const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
    const __m512i m[2] = {magnitudes_[0](a), magnitudes_[1](a)};
    const __m512i s[2] = {signs_[0](b), signs_[1](b)};
    Words words;
    for (int h = 0; h < 2; ++h) {
      __m512i x[2];
      for (int p = 0; p < 2; ++p) {  // lower ? first : second
        x[p] = h == 0 ? _mm512_ternarylogic_epi32(lower, m[p], s[p], 0xca)
                      : _mm512_ternarylogic_epi32(lower, s[p], m[p], 0xca);
      }
      words.at[h][0] = _mm512_unpacklo_epi8(x[0], x[1]);
      words.at[h][1] = _mm512_unpackhi_epi8(x[0], x[1]);
    }
    return words;
  }
  // Of block b.
  __m512i levels(const Words& words, int b, int h) const {
    const __m512i index = _mm512_multishift_epi64_epi8(kShifts[b % 2].load(), words.at[h][b / 2]);
    return _mm512_permutexvar_epi8(index, levels_[h]);
  }

 private:
  ByteTable<8> magnitudes_[2], signs_[2];
  __m512i levels_[2];
};

constexpr int kQuads = 8;  // of two lines of codes

// The levels of a panel, line after line.
template <bool kHasResidual>
class LevelStream {
 public:
  explicit LevelStream(const E8pLines& lines)
      : point_(*lines.point),
        residual_(kHasResidual ? *lines.residual : *lines.point),
        n_lines_(e8p_n_lines(lines.kind)),
        second_(e8p_second_line(lines.kind)),
        codes_(lines.codes) {}

  // Calls use(levels, quad) for those of the next n times 32 columns.
  template <class Use>
  [[gnu::always_inline]] void next(int64_t n, const Use& use) {
    for (int64_t i = 0; i < n; ++i, codes_ += n_lines_ * kE8pLine) {
      for (int64_t k = 0; k < n_lines_; ++k) fetch_ahead(codes_ + kFetchAhead + k * kE8pLine);
      const Stage::Words of_point = point_.words(codes_, codes_ + kE8pLine);
      Stage::Words of_residual;
      if constexpr (kHasResidual) {
        of_residual = residual_.words(codes_ + 2 * kE8pLine, codes_ + second_ * kE8pLine);
      }
#pragma GCC unroll 8
      for (int k = 0; k < kQuads; ++k) {
        __m512i levels = point_.levels(of_point, k / 2, k % 2);
        if constexpr (kHasResidual) {
          levels = _mm512_add_epi8(levels, residual_.levels(of_residual, k / 2, k % 2));
        }
        use(levels, kQuads * i + k);
      }
    }
  }

 private:
  Stage point_, residual_;
  int64_t n_lines_, second_;
  const uint8_t* codes_;
};

template <bool kHasResidual>
void write_lines(const E8pLines& lines, uint8_t* panel) {
  LevelStream<kHasResidual> stream(lines);
  stream.next(lines.n,
              [&](__m512i levels, int64_t q) { _mm512_storeu_si512(panel + 64 * q, levels); });
}

template <bool kHasResidual>
void dot_lines(const E8pLines& lines, const Int8Rows& x, const float* scales, float* y) {
  LevelStream<kHasResidual> stream(lines);
  const Lanes scale_w = Lanes::load(scales);
  const auto next = [&](int64_t n, const auto& use) { stream.next(n / kQuads, use); };
  const auto scales_at = [&](int64_t) { return scale_w; };
  dot_by_groups<PanelDots, Lanes>(x, kQuads * lines.n, next, scales_at).store(y);
}

}  // namespace

void e8p_lines_avx512(const E8pLines& lines, uint8_t* panel) {
  lines.residual != nullptr ? write_lines<true>(lines, panel) : write_lines<false>(lines, panel);
}

void e8p_dot_avx512(const E8pLines& lines, const Int8Rows& x, const float* scales, float* y) {
  const auto dot = lines.residual != nullptr ? dot_lines<true> : dot_lines<false>;
  dot(lines, x, scales, y);
}

}  // namespace quern
