// SPDX-License-Identifier: Apache-2.0
// Eight rows at a time: two permutations bring each row the two words its window lies in, two
// shifts cut it out. Panels go down the rows, so that the stream is read in its order.
#include <algorithm>
#include <array>
#include <vector>

#include "codecs/byte_table_avx2.h"
#include "codecs/trellis.h"
#include "kernels/panels.h"

namespace quern {
namespace {

// Where the windows of 16 rows lie whose first bit is bit `start` of the second of eight words.
struct Chunk {
  alignas(32) int32_t words[16];  // the first that a window lies in
  alignas(32) int32_t shifts[16];
};

// Chunks start at even bits (trellis_panels_avx512.cc): chunk i at bit 2 i.
using Chunks = std::array<Chunk, 16>;
Chunks make_chunks(const TrellisCode& code) {
  Chunks chunks;
  for (int i = 0; i < 16; ++i) {
    for (int row = 0; row < 16; ++row) {
      const int begin = 2 * i + row / 8 * code.eighths + code.end_bit(row % 8 + 1);
      chunks[static_cast<size_t>(i)].words[row] = begin / 32;
      chunks[static_cast<size_t>(i)].shifts[row] = begin % 32;
    }
  }
  return chunks;
}

const Chunks& chunks_of(const TrellisCode& code) {
  static const auto all = [] {
    std::vector<Chunks> chunks(41);
    for (int eighths = 8; eighths <= 40; ++eighths) {
      chunks[static_cast<size_t>(eighths)] = make_chunks(trellis_code(eighths));
    }
    return chunks;
  }();
  return all[static_cast<size_t>(code.eighths)];
}

// Words [first, first + 8) of the stream, zero where they do not exist.
inline __m256i words_at(const TrellisStrip& strip, int64_t first) {
  const auto* words = reinterpret_cast<const int*>(strip.words) + first;
  if (first >= 0 && first + 8 <= strip.n_words) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  }
  const auto begin = static_cast<int>(std::clamp<int64_t>(-first, 0, 8));
  const auto end = static_cast<int>(std::clamp<int64_t>(strip.n_words - first, 0, 8));
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i is_before = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), place);
  const __m256i is_within = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), place);
  return _mm256_maskload_epi32(words, _mm256_andnot_si256(is_before, is_within));
}

// Of rows 8 half to 8 half + 7.
inline __m256i windows_of(__m256i words, const Chunk& chunk, int half) {
  const auto load = [&](const int32_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 8 * half));
  };
  const __m256i word = load(chunk.words), shift = load(chunk.shifts);
  const __m256i next = _mm256_add_epi32(word, _mm256_set1_epi32(1));
  const __m256i first = _mm256_permutevar8x32_epi32(words, word);
  const __m256i second = _mm256_permutevar8x32_epi32(words, next);
  // A shift by 32 leaves nothing.
  return _mm256_or_si256(_mm256_sllv_epi32(first, shift),
                         _mm256_srlv_epi32(second, _mm256_sub_epi32(_mm256_set1_epi32(32), shift)));
}

// The code function of eight windows of each of four columns; levels + 128.
template <int kLevelBits>
class Levels {
 public:
  explicit Levels(const TrellisCode& code)
      : multiplier_(_mm256_set1_epi32(static_cast<int>(
            static_cast<uint16_t>(code.multiplier_low) |
            static_cast<uint32_t>(static_cast<uint16_t>(code.multiplier_high)) << 16))),
        table_(code.levels) {}

  __m256i of(const __m256i (&windows)[4]) const {
    __m256i hash[4];
    for (int i = 0; i < 4; ++i) hash[i] = _mm256_madd_epi16(windows[i], multiplier_);
    // The second lowest byte of each goes to byte i.
    const __m256i is_odd = _mm256_set1_epi16(static_cast<int16_t>(0xff00));
    const __m256i lower = _mm256_blendv_epi8(_mm256_srli_epi32(hash[0], 8), hash[1], is_odd);
    const __m256i upper =
        _mm256_blendv_epi8(_mm256_slli_epi32(hash[2], 8), _mm256_slli_epi32(hash[3], 16), is_odd);
    const __m256i index = _mm256_blend_epi16(lower, upper, 0xaa);
    const __m256i level = table_(_mm256_srli_epi16(index, 8 - kLevelBits));
    return _mm256_xor_si256(level, _mm256_set1_epi8(static_cast<char>(kPanelZero)));
  }

 private:
  __m256i multiplier_;
  ByteTable<kLevelBits> table_;
};

template <int kLevelBits>
void write_levels(const TrellisCode& code, const TrellisStrip& strip, const TrellisWindow& window,
                  uint8_t* levels, int64_t stride) {
  const Levels<kLevelBits> table(code);
  const Chunks& chunks = chunks_of(code);
  const int64_t column_bits = strip.height / 8 * code.eighths;
  const int64_t n_panels = (window.n_rows + kPanelRows - 1) / kPanelRows;
  for (int64_t j = 0; j < window.n_cols; j += 4, levels += 64) {
    int64_t bit = (window.col + j) * column_bits + window.row / 8 * code.eighths;
    for (int64_t p = 0; p < n_panels; ++p, bit += 2 * code.eighths) {
      __m256i windows[2][4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t begin = bit + i * column_bits;
        const __m256i words = words_at(strip, begin / 32 - 1);
        const Chunk& chunk = chunks[static_cast<size_t>(begin % 32 / 2)];
        for (int half = 0; half < 2; ++half) windows[half][i] = windows_of(words, chunk, half);
      }
      for (int half = 0; half < 2; ++half) {
        auto* to = reinterpret_cast<__m256i*>(levels + p * stride + 32 * half);
        _mm256_storeu_si256(to, table.of(windows[half]));
      }
    }
  }
}

}  // namespace

void trellis_levels_avx2(const TrellisCode& code, const TrellisStrip& strip,
                         const TrellisWindow& window, uint8_t* levels, int64_t stride) {
  const auto write = code.level_bits == 8   ? write_levels<8>
                     : code.level_bits == 7 ? write_levels<7>
                                            : write_levels<6>;
  write(code, strip, window, levels, stride);
}

}  // namespace quern
