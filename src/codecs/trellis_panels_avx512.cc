// SPDX-License-Identifier: Apache-2.0
// Levels of 16 rows and four columns are one vector of bytes, as a panel wants them. The 16 windows
// of a column lie within 111 bits, at places that depend on the rows alone: one byte shuffle brings
// the bits of two neighbours into each 64-bit lane, one multishift cuts out their windows. Where
// they lie in two words, a broadcast takes the shuffle's place. Panels go down the rows, so that
// the stream is read in its order. docs/codecs/trellis.md counts the operations.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "codecs/trellis.h"
#include "kernels/fetch_ahead.h"
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
// bits: chunk i at bit 2 i.
using Chunks = std::array<Chunk, 16>;
const Chunks& chunks_of(const TrellisCode& code) {
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
  return chunks[static_cast<size_t>(code.eighths)];
}

struct Bytes {
  alignas(64) uint8_t at[64];
};

template <class ByteAt>
constexpr Bytes make_bytes(const ByteAt& byte_at) {
  Bytes bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = static_cast<uint8_t>(byte_at(i));
  return bytes;
}

// Shifts of 16 windows in two words, where the first ends `bits` behind bit `start` of the second.
// A lane has the first word in its lower half, and a multishift goes round.
constexpr Bytes make_shifts(int bits, int start) {
  return make_bytes([=](int i) { return (64 - start - (i / 4 + 1) * bits + i % 4 * 8) % 64; });
}
constexpr Bytes kShifts1[2] = {make_shifts(1, 0), make_shifts(1, 16)};
constexpr Bytes kShifts2 = make_shifts(2, 0);

// In turn the second lowest bytes of the 32-bit lanes of two vectors.
constexpr Bytes kUpperBytes = make_bytes([](int i) { return i / 4 * 4 + 1 + i % 2 * 64; });

// All four before what follows: the processor's schedulers share out operations of one kind in a
// row better than the mixture that GCC would make.
inline void in_a_row(__m512i (&v)[4]) { asm("" : "+v"(v[0]), "+v"(v[1]), "+v"(v[2]), "+v"(v[3])); }

// In a register: GCC would load constants again in every turn of a loop.
inline __m512i kept(__m512i v) {
  asm("" : "+v"(v));
  return v;
}

// Words [first, first + 8) of the stream, zero where they do not exist.
inline __m512i existing_words(const TrellisStrip& strip, int64_t first) {
  const int64_t n = std::clamp<int64_t>(strip.n_words - first, 0, 8);
  const int64_t before = std::clamp<int64_t>(-first, 0, 8);
  const unsigned present = ((1u << n) - 1) >> before << before;
  return _mm512_castsi256_si512(
      _mm256_maskz_loadu_epi32(static_cast<__mmask8>(present), strip.words + 4 * first));
}

// The code function of 16 windows of each of four columns; levels + 128.
template <int kLevelBits>
class Levels {
 public:
  explicit Levels(const TrellisCode& code)
      : multiplier_(kept(_mm512_set1_epi32(static_cast<int>(
            static_cast<uint16_t>(code.multiplier_low) |
            static_cast<uint32_t>(static_cast<uint16_t>(code.multiplier_high)) << 16)))),
        upper_bytes_(kept(_mm512_load_si512(kUpperBytes.at))),
        ones_(kept(_mm512_set1_epi8(-1))),
        lower_(biased(code.levels)),
        upper_(biased(code.levels + 64)) {}

  __m512i of(const __m512i (&windows)[4]) const {
    __m512i hash[4];
    for (int i = 0; i < 4; ++i) hash[i] = _mm512_madd_epi16(windows[i], multiplier_);
    in_a_row(hash);
    // The bits below 16 count, the index uppermost. Bytes that a permutation leaves out keep what
    // they are to take in the next.
    const __m512i of_two =
        _mm512_mask2_permutex2var_epi8(hash[0], upper_bytes_, 0x3333333333333333u, hash[1]);
    const __m512i index =
        _mm512_mask2_permutex2var_epi8(hash[2], of_two, 0xccccccccccccccccu, hash[3]);
    return at(kLevelBits == 8 ? index : _mm512_srli_epi16(index, 8 - kLevelBits));
  }

  // Bits of an index above kLevelBits are ignored.
  __m512i at(__m512i index) const {
    if constexpr (kLevelBits == 6) return _mm512_permutexvar_epi8(index, lower_);
    if constexpr (kLevelBits == 7) return _mm512_permutex2var_epi8(lower_, index, upper_);
    // Levels are symmetric: index 255 - i has the negative value of i.
    const __mmask64 is_upper = _mm512_movepi8_mask(index);
    index = _mm512_mask_sub_epi8(index, is_upper, ones_, index);
    const __m512i level = _mm512_permutex2var_epi8(lower_, index, upper_);
    return _mm512_mask_sub_epi8(level, is_upper, _mm512_setzero_si512(), level);
  }

 private:
  static __m512i biased(const int8_t* levels) {
    return kept(_mm512_xor_si512(_mm512_loadu_si512(levels),
                                 _mm512_set1_epi8(static_cast<char>(kPanelZero))));
  }
  __m512i multiplier_, upper_bytes_, ones_, lower_, upper_;
};

// What the windows of 16 rows of a column lie in.
enum class Source {
  kTwoWords,    // 1 and 2 bits: a 64-bit lane has them all
  kFourWords,   // up to 4 bits: a shuffle of bytes makes lanes for two rows each
  kEightWords,  // any rate: likewise
};

// Where the windows of a panel begin.
struct Place {
  int64_t byte;  // of the first word, in the stream of the first column
  const uint8_t *bytes, *shifts;
};

// 64-bit lanes of two rows each, of one column.
template <Source kSource>
__m512i load_lanes(const uint8_t* words, __m512i bytes) {
  if constexpr (kSource == Source::kTwoWords) {
    int64_t lane;
    std::memcpy(&lane, words, sizeof lane);
    return _mm512_set1_epi64(lane);
  } else if constexpr (kSource == Source::kFourWords) {
    const auto* four = reinterpret_cast<const __m128i*>(words);
    return _mm512_permutexvar_epi8(bytes, _mm512_zextsi128_si512(_mm_loadu_si128(four)));
  } else {
    const auto* eight = reinterpret_cast<const __m256i*>(words);
    return _mm512_permutexvar_epi8(bytes, _mm512_zextsi256_si512(_mm256_loadu_si256(eight)));
  }
}

// Up to kMostPanels panels of one window.
template <int kLevelBits, Source kSource>
class Decoder {
 public:
  static constexpr int64_t kMostPanels = 16;

  Decoder(const TrellisCode& code, const TrellisStrip& strip, const TrellisWindow& window)
      : code_(code),
        chunks_(chunks_of(code)),
        strip_(strip),
        window_(window),
        n_panels_((window.n_rows + kPanelRows - 1) / kPanelRows),
        column_bits_(strip.height / 8 * code.eighths) {
    int64_t bit = bit_of(0, 0);
    for (int64_t p = 0; p < n_panels_; ++p, bit += 2 * code.eighths) {
      const Chunk& chunk = chunk_at(bit);
      places_[p] = {(bit / 32 - 1) * 4, chunk.bytes, chunk.shifts};
      if constexpr (kSource == Source::kTwoWords) {
        places_[p].shifts = (code.eighths == 16 ? kShifts2 : kShifts1[bit % 32 / 16]).at;
      }
      for (int64_t i = 0; i < 4 && column_bits_ % 32 != 0; ++i) {
        const int64_t first = bit + i * column_bits_;
        uneven_places_[p][i] = {(first / 32 - 1) * 4, chunk_at(first).bytes,
                                chunk_at(first).shifts};
      }
    }
  }

  void write(uint8_t* levels, int64_t stride) const {
    const Levels<kLevelBits> table(code_);
    const int64_t n_bytes = 4 * strip_.n_words, column_bytes = column_bits_ / 8;
    const int64_t begin = places_[0].byte;
    const int64_t end = places_[n_panels_ - 1].byte + 3 * column_bytes + 36;
    const bool is_even = column_bits_ % 32 == 0;
    // Bytes of a column to be fetched: those of these rows, or all of them with the first.
    const int64_t used = window_.row == 0 ? column_bytes : n_panels_ * 2 * code_.eighths / 8;
    for (int64_t j = 0; j < window_.n_cols; j += 4, levels += 64) {
      const int64_t column = (window_.col + j) * column_bytes;
      // The next window is where the stream goes on.
      const uint8_t* next = strip_.words + begin + column + kAhead * column_bytes;
      for (int64_t k = 0; k < used; k += 64, next += 64) {
        for (int64_t i = 0; i < 4; ++i) fetch_ahead(next + i * column_bytes);
      }
      const bool is_whole_words = is_even || window_.col % 4 == 0;
      if (!is_whole_words || column + begin < 0 || column + end > n_bytes) {
        write_with_care(j, table, levels, stride);
        continue;
      }
      const uint8_t* stream = strip_.words + column;
      if (!is_even) {
        write_uneven(stream, table, levels, stride);
        continue;
      }
      uint8_t* to = levels;
      for (const Place *place = places_, *last = places_ + n_panels_; place < last; ++place) {
        const uint8_t* words = stream + place->byte;
        const __m512i bytes = _mm512_load_si512(place->bytes);
        const __m512i shifts = _mm512_load_si512(place->shifts);
        __m512i windows[4];
        for (int64_t i = 0; i < 4; ++i, words += column_bytes) {
          windows[i] = load_lanes<kSource>(words, bytes);
        }
        in_a_row(windows);
        for (__m512i& w : windows) w = _mm512_multishift_epi64_epi8(shifts, w);
        in_a_row(windows);
        _mm512_storeu_si512(to, table.of(windows));
        to += stride;
      }
    }
  }

 private:
  static constexpr int64_t kAhead = 64;  // columns

  const Chunk& chunk_at(int64_t bit) const { return chunks_[static_cast<size_t>(bit % 32 / 2)]; }

  // Where panel p begins in column j.
  int64_t bit_of(int64_t p, int64_t j) const {
    return j * column_bits_ + (window_.row + p * kPanelRows) / 8 * code_.eighths;
  }

  // Four columns, the first of which begins with a word.
  void write_uneven(const uint8_t* stream, const Levels<kLevelBits>& table, uint8_t* levels,
                    int64_t stride) const {
    for (int64_t p = 0; p < n_panels_; ++p) {
      __m512i windows[4];
      for (int64_t i = 0; i < 4; ++i) {
        const Place& place = uneven_places_[p][i];
        const __m512i lanes =
            load_lanes<Source::kEightWords>(stream + place.byte, _mm512_load_si512(place.bytes));
        windows[i] = _mm512_multishift_epi64_epi8(_mm512_load_si512(place.shifts), lanes);
      }
      _mm512_storeu_si512(levels + p * stride, table.of(windows));
    }
  }

  // Four columns; words may be missing, and columns begin within words.
  void write_with_care(int64_t j, const Levels<kLevelBits>& table, uint8_t* levels,
                       int64_t stride) const {
    for (int64_t p = 0; p < n_panels_; ++p) {
      __m512i windows[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t bit = bit_of(p, window_.col + j + i);
        const Chunk& chunk = chunk_at(bit);
        const __m512i words = existing_words(strip_, bit / 32 - 1);
        const __m512i lanes = _mm512_permutexvar_epi8(_mm512_load_si512(chunk.bytes), words);
        windows[i] = _mm512_multishift_epi64_epi8(_mm512_load_si512(chunk.shifts), lanes);
      }
      _mm512_storeu_si512(levels + p * stride, table.of(windows));
    }
  }

  const TrellisCode& code_;
  const Chunks& chunks_;
  const TrellisStrip& strip_;
  const TrellisWindow& window_;
  int64_t n_panels_, column_bits_;
  Place places_[kMostPanels];
  Place uneven_places_[kMostPanels][4];  // of each column, where columns begin within words
};

template <int kLevelBits, Source kSource>
void levels_avx512(const TrellisCode& code, const TrellisStrip& strip, const TrellisWindow& window,
                   uint8_t* levels, int64_t stride) {
  using Panels = Decoder<kLevelBits, kSource>;
  constexpr int64_t kMostRows = Panels::kMostPanels * kPanelRows;
  for (int64_t i = 0; i < window.n_rows; i += kMostRows) {
    TrellisWindow part = window;
    part.row += i;
    part.n_rows = std::min(kMostRows, window.n_rows - i);
    Panels(code, strip, part).write(levels + i / kPanelRows * stride, stride);
  }
}

}  // namespace

void trellis_scales_avx512(float base, const std::byte* codes, int64_t n, float* scales,
                           int64_t stride) {
  const __m512 steps = _mm512_loadu_ps(kTrellisSteps);
  for (; n > 0; n -= kPanelRows, codes += kPanelRows, scales += stride) {
    const auto exists = static_cast<__mmask16>(n >= kPanelRows ? 0xffffu : (1u << n) - 1);
    const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(exists, codes));
    const __m512 exponent = _mm512_cvtepi32_ps(_mm512_srli_epi32(code, 4));
    const __m512 factor = _mm512_maskz_scalef_ps(
        _mm512_cmpneq_epi32_mask(code, _mm512_set1_epi32(255)), _mm512_permutexvar_ps(code, steps),
        _mm512_sub_ps(_mm512_setzero_ps(), exponent));
    _mm512_storeu_ps(scales, _mm512_maskz_mul_ps(exists, _mm512_set1_ps(base), factor));
  }
}

void trellis_levels_avx512(const TrellisCode& code, const TrellisStrip& strip,
                           const TrellisWindow& window, uint8_t* levels, int64_t stride) {
  const int bits = code.level_bits;
  const auto write = code.eighths == 8 || code.eighths == 16 ? levels_avx512<6, Source::kTwoWords>
                     : code.eighths > 32                     ? levels_avx512<8, Source::kEightWords>
                     : bits == 8                             ? levels_avx512<8, Source::kFourWords>
                     : bits == 7                             ? levels_avx512<7, Source::kFourWords>
                                                             : levels_avx512<6, Source::kFourWords>;
  write(code, strip, window, levels, stride);
}

}  // namespace quern
