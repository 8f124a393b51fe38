// SPDX-License-Identifier: Apache-2.0
// Levels of 16 rows and four columns are one vector of bytes, as a panel wants them. The 16 windows
// of a column end within 111 bits, at places that depend on the rows alone: one byte shuffle brings
// the bits of two neighbours into each 64-bit lane, one multishift cuts out their windows.
#include <algorithm>
#include <array>
#include <vector>

#include "codecs/byte_table_avx512.h"
#include "codecs/trellis.h"
#include "kernels/intrinsics.h"
#include "kernels/panels.h"

namespace quern {
namespace {

// Where the windows of 16 rows lie whose first bit is bit `start` of the second of eight words.
struct Chunk {
  alignas(64) uint8_t bytes[64];   // of each lane
  alignas(64) uint8_t shifts[64];  // of each byte of a window in its lane
};

Chunk make_chunk(const TrellisCode& code, int start) {
  Chunk chunk;
  const auto begin_of = [&](int row) {
    return start + row / 8 * code.eighths + code.end_bit(row % 8 + 1);
  };
  for (int row = 0; row < 16; ++row) {
    const int first_byte = begin_of(row / 2 * 2) / 8, begin = begin_of(row) - 8 * first_byte;
    for (int b = 0; b < 4; ++b) {
      // A lane holds its eight bytes in the order of the stream, the first uppermost; words hold
      // their first byte uppermost too.
      const int byte = first_byte + 7 - (row % 2 * 4 + b);
      chunk.bytes[row * 4 + b] = static_cast<uint8_t>(byte / 4 * 4 + 3 - byte % 4);
      chunk.shifts[row * 4 + b] = static_cast<uint8_t>(32 - begin + 8 * b);
    }
  }
  return chunk;
}

// 16 rows take an even number of bits and columns a multiple of 8, so that chunks start at even
// bits.
const Chunk& chunk_at(const TrellisCode& code, int64_t start) {
  using Chunks = std::array<Chunk, 16>;
  static const auto chunks = [] {
    std::vector<Chunks> all(41);
    for (int eighths = 8; eighths <= 40; ++eighths) {
      for (int i = 0; i < 16; ++i) {
        all[static_cast<size_t>(eighths)][static_cast<size_t>(i)] =
            make_chunk(trellis_code(eighths), 2 * i);
      }
    }
    return all;
  }();
  return chunks[static_cast<size_t>(code.eighths)][static_cast<size_t>(start / 2)];
}

// Words [first, first + 8) of the stream, of which some may not exist.
inline __m512i existing_words(const TrellisStrip& strip, int64_t first) {
  unsigned present = 0;
  for (int i = 0; i < 8; ++i) {
    if (first + i >= 0 && first + i < strip.n_words) present |= 1u << i;
  }
  return _mm512_castsi256_si512(
      _mm256_maskz_loadu_epi32(static_cast<__mmask8>(present), strip.words + 4 * first));
}

std::array<uint8_t, 256> biased_levels(const TrellisCode& code) {
  std::array<uint8_t, 256> levels;
  for (size_t i = 0; i < 256; ++i) levels[i] = static_cast<uint8_t>(kPanelZero + code.levels[i]);
  return levels;
}

// What all chunks of a matrix share.
template <int kLevelBits>
class Decoder {
 public:
  Decoder(const TrellisCode& code, const TrellisStrip& strip, const TrellisWindow& window)
      : code_(code),
        strip_(strip),
        window_(window),
        column_bits_(strip.height / 8 * code.eighths),
        level_bytes_(biased_levels(code).data()),
        multiplier_(_mm512_set1_epi32(static_cast<int>(
            static_cast<uint16_t>(code.multiplier_low) |
            static_cast<uint32_t>(static_cast<uint16_t>(code.multiplier_high)) << 16))),
        high_bytes_(_mm512_set1_epi16(static_cast<int16_t>(0xff00))) {}

  // 16 rows from `row` on.
  void chunk(int64_t row, uint8_t* levels) const {
    // Four columns begin at the same bits of their words as the four before.
    __m512i bytes[4], shifts[4];
    int64_t first[4];  // word
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t bit = (window_.col + i) * column_bits_ + row / 8 * code_.eighths;
      const Chunk& chunk = chunk_at(code_, bit % 32);
      bytes[i] = _mm512_load_si512(chunk.bytes);
      shifts[i] = _mm512_load_si512(chunk.shifts);
      first[i] = bit / 32 - 1;
    }
    const int64_t step = 4 * column_bits_ / 32;  // words
    // Quads whose words all exist, after and before some that need care.
    const int64_t n_quads = window_.n_cols / 4;
    const int64_t begin = first[0] < 0 ? 1 : 0;
    const int64_t room = strip_.n_words - 8 - first[3];
    const int64_t end = std::min(n_quads, room < 0 ? 0 : room / step + 1);
    const auto careful = [&](int64_t q) {
      __m512i source[4];
      for (int i = 0; i < 4; ++i) source[i] = existing_words(strip_, first[i] + q * step);
      _mm512_storeu_si512(levels + q * 64, quad(source, bytes, shifts));
    };
    for (int64_t q = 0; q < std::min(begin, n_quads); ++q) careful(q);
    const uint8_t* words[4];
    for (int i = 0; i < 4; ++i) words[i] = strip_.words + 4 * (first[i] + begin * step);
    for (int64_t q = begin; q < end; ++q) {
      __m512i source[4];
      for (int i = 0; i < 4; ++i) {
        source[i] =
            _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words[i])));
        words[i] += 4 * step;
      }
      _mm512_storeu_si512(levels + q * 64, quad(source, bytes, shifts));
    }
    for (int64_t q = std::max(begin, end); q < n_quads; ++q) careful(q);
  }

 private:
  // Four columns of 16 rows.
  __m512i quad(const __m512i (&words)[4], const __m512i (&bytes)[4],
               const __m512i (&shifts)[4]) const {
    __m512i hash[4];
    for (int i = 0; i < 4; ++i) {
      const __m512i lanes = _mm512_permutexvar_epi8(bytes[i], words[i]);
      hash[i] = _mm512_madd_epi16(_mm512_multishift_epi64_epi8(shifts[i], lanes), multiplier_);
    }
    // The bits of a hash below 16 count, the index uppermost.
    const __m512i even =
        _mm512_mask_blend_epi16(kOddWords, hash[0], _mm512_slli_epi32(hash[2], 16));
    const __m512i odd = _mm512_mask_blend_epi16(kOddWords, hash[1], _mm512_slli_epi32(hash[3], 16));
    const __m512i index = _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 16 - kLevelBits),
                                                    _mm512_srli_epi16(odd, 8 - kLevelBits),
                                                    high_bytes_, 0xf8);  // a | (b & c)
    return level_bytes_(index);
  }

  static constexpr __mmask32 kOddWords = 0xaaaaaaaau;
  const TrellisCode& code_;
  const TrellisStrip& strip_;
  const TrellisWindow& window_;
  int64_t column_bits_;
  ByteTable<kLevelBits> level_bytes_;
  __m512i multiplier_, high_bytes_;
};

template <int kLevelBits>
void levels_avx512(const TrellisCode& code, const TrellisStrip& strip, const TrellisWindow& window,
                   uint8_t* levels, int64_t stride) {
  const Decoder<kLevelBits> decoder(code, strip, window);
  // The columns that come next are asked for while these are decoded, a share with every chunk.
  const int64_t column_bits = strip.height / 8 * code.eighths;
  const uint8_t* next = strip.words + (window.col + window.n_cols) * column_bits / 8;
  const int64_t share = window.n_cols * column_bits / 8 * kPanelRows / window.n_rows;
  for (int64_t i = 0; i < window.n_rows; i += kPanelRows) {
    for (int64_t byte = 0; byte < share; byte += 64) _mm_prefetch(next + byte, _MM_HINT_T0);
    next += share;
    decoder.chunk(window.row + i, levels + i / kPanelRows * stride);
  }
}

}  // namespace

void trellis_levels_avx512(const TrellisCode& code, const TrellisStrip& strip,
                           const TrellisWindow& window, uint8_t* levels, int64_t stride) {
  if (code.level_bits == 6) return levels_avx512<6>(code, strip, window, levels, stride);
  if (code.level_bits == 7) return levels_avx512<7>(code, strip, window, levels, stride);
  levels_avx512<8>(code, strip, window, levels, stride);
}

}  // namespace quern
