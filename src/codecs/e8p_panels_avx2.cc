// SPDX-License-Identifier: Apache-2.0
// As for AVX-512, half a line at a time: tables of 256 bytes are sixteen shuffles, a multishift is
// a shuffle, a shift and a blend.
#include "codecs/byte_table_avx2.h"
#include "codecs/e8p_panels.h"
#include "kernels/fetch_ahead.h"

namespace quern {
namespace {

constexpr int64_t kHalf = 32;

inline __m256i load(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// Both bytes x of a block twice, in the four bytes of their row: of the block b % 2.
inline __m256i spread(__m256i words, int b) {
  const __m256i first = _mm256_set_epi32(0x0d0d0c0c, 0x09090808, 0x05050404, 0x01010000, 0x0d0d0c0c,
                                         0x09090808, 0x05050404, 0x01010000);
  const __m256i place = _mm256_add_epi8(first, _mm256_set1_epi8(static_cast<char>(2 * (b % 2))));
  return _mm256_shuffle_epi8(words, place);
}

// Points, or their residuals.
class Stage {
 public:
  explicit Stage(const E8pPanelTables& t)
      : magnitudes_{ByteTable<8>(t.magnitudes[0]), ByteTable<8>(t.magnitudes[1])},
        signs_{ByteTable<8>(t.signs[0]), ByteTable<8>(t.signs[1])},
        levels_{ByteTable<6>(t.levels[0]), ByteTable<6>(t.levels[1])} {}

  // [h][blocks 0 and 1, or 2 and 3]: both bytes x of their halves h, of eight rows.
  struct Words {
    __m256i at[2][2];
  };
  Words words(const uint8_t* first, const uint8_t* second) const {
    const __m256i lower = _mm256_set1_epi8(0x0f);
    const __m256i a = load(first), b = load(second);
    __m256i x[2][2];  // [h][p]
    for (int p = 0; p < 2; ++p) {
      const __m256i m = magnitudes_[p](a), s = signs_[p](b);
      const __m256i turned = _mm256_and_si256(_mm256_xor_si256(m, s), lower);
      x[0][p] = _mm256_xor_si256(s, turned);  // lower ? m : s
      x[1][p] = _mm256_xor_si256(m, turned);  // lower ? s : m
    }
    Words words;
    for (int h = 0; h < 2; ++h) {
      words.at[h][0] = _mm256_unpacklo_epi8(x[h][0], x[h][1]);
      words.at[h][1] = _mm256_unpackhi_epi8(x[h][0], x[h][1]);
    }
    return words;
  }
  // Of block b.
  __m256i levels(const Words& words, int b, int h) const {
    const __m256i twice = spread(words.at[h][b / 2], b);
    const __m256i second = _mm256_set1_epi16(static_cast<int16_t>(0xff00));
    return levels_[h](_mm256_blendv_epi8(twice, _mm256_srli_epi16(twice, 2), second));
  }

 private:
  ByteTable<8> magnitudes_[2], signs_[2];
  ByteTable<6> levels_[2];
};

template <bool kHasResidual>
void write_lines(const E8pLines& lines, uint8_t* panel) {
  const Stage point(*lines.point), residual(kHasResidual ? *lines.residual : *lines.point);
  const int64_t n_lines = e8p_n_lines(lines.kind), second = e8p_second_line(lines.kind);
  const uint8_t* codes = lines.codes;
  for (int64_t i = 0; i < lines.n; ++i, codes += n_lines * kE8pLine, panel += 8 * 64) {
    for (int64_t k = 0; k < n_lines; ++k) fetch_ahead(codes + kFetchAhead + k * kE8pLine);
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t* at = codes + half * kHalf;
      const Stage::Words of_point = point.words(at, at + kE8pLine);
      Stage::Words of_residual;
      if constexpr (kHasResidual) {
        of_residual = residual.words(at + 2 * kE8pLine, at + second * kE8pLine);
      }
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) {
        __m256i levels = point.levels(of_point, k / 2, k % 2);
        if constexpr (kHasResidual) {
          levels = _mm256_add_epi8(levels, residual.levels(of_residual, k / 2, k % 2));
        }
        auto* to = reinterpret_cast<__m256i*>(panel + k * 64 + half * kHalf);
        _mm256_storeu_si256(to, levels);
      }
    }
  }
}

}  // namespace

void e8p_lines_avx2(const E8pLines& lines, uint8_t* panel) {
  lines.residual != nullptr ? write_lines<true>(lines, panel) : write_lines<false>(lines, panel);
}

}  // namespace quern
