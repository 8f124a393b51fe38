// SPDX-License-Identifier: Apache-2.0
// 16 columns of four rows at a time: pdep makes bytes of the fields, tables of 16 are a byte
// shuffle and whole numbers a sum, and four rows are turned.
#include <algorithm>

#include "base/checked.h"
#include "codecs/bit_stream_avx2.h"
#include "codecs/code_panels.h"
#include "kernels/panels.h"

namespace quern {
namespace {

// How codes become levels.
class Levels {
 public:
  Levels(const uint8_t* levels, int bits)
      : all_(levels), is_small_(bits <= 4), first_(_mm_set1_epi8(static_cast<char>(levels[0]))) {
    alignas(16) uint8_t small[16];
    for (unsigned i = 0; i < 16; ++i) small[i] = levels[i & ((1u << bits) - 1)];
    small_ = _mm_load_si128(reinterpret_cast<const __m128i*>(small));
    for (unsigned i = 0; i < 1u << bits; ++i) {
      is_sum_ = is_sum_ && levels[i] == static_cast<uint8_t>(levels[0] + i);
    }
  }
  __m128i of(__m128i codes) const {
    if (is_small_) return _mm_shuffle_epi8(small_, codes);
    if (is_sum_) return _mm_add_epi8(codes, first_);
    alignas(16) uint8_t bytes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
    for (uint8_t& byte : bytes) byte = all_[byte];
    return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  }

 private:
  const uint8_t* all_;
  bool is_small_, is_sum_ = true;
  __m128i first_, small_;
};

}  // namespace

void code_panel_avx2(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, int64_t /*panel_group*/, uint8_t* panel) {
  const Levels levels(codes.levels, codes.low_bits + codes.high_bits);
  const int64_t low_bytes = stream_bytes(codes.n_in, codes.low_bits);
  const int64_t high_bytes = stream_bytes(codes.n_in, codes.high_bits);
  const int64_t group = std::min(codes.group, codes.n_in), n_groups = ceil_div(codes.n_in, group);
  for (int64_t j = col; j < col + n_cols; j += 16, panel += 16 * kPanelRows) {
    for (int64_t r = 0; r < n_rows; r += 4) {
      __m128i rows[4];
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = row + std::min(r + k, n_rows - 1);
        __m128i code = sixteen_codes_avx2(codes.low + i * low_bytes, j, codes.n_in, codes.low_bits);
        if (codes.high_bits > 0) {
          const __m128i high =
              sixteen_codes_avx2(codes.high + i * high_bytes, j, codes.n_in, codes.high_bits);
          code = _mm_or_si128(code, _mm_slli_epi16(high, codes.low_bits));
        }
        rows[k] = levels.of(code);
        if (codes.zeros != nullptr) {
          const uint8_t zero = codes.zeros[i * n_groups + j / group];
          rows[k] = _mm_sub_epi8(rows[k], _mm_set1_epi8(static_cast<char>(zero)));
        }
      }
      const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]);
      const __m128i b = _mm_unpackhi_epi32(rows[0], rows[1]);
      const __m128i c = _mm_unpacklo_epi32(rows[2], rows[3]);
      const __m128i d = _mm_unpackhi_epi32(rows[2], rows[3]);
      const __m128i quads[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c),
                                _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
      for (int64_t q = 0; q < 4; ++q) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(panel + (q * kPanelRows + r) * 4), quads[q]);
      }
    }
  }
}

}  // namespace quern
