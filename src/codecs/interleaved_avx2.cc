// SPDX-License-Identifier: Apache-2.0
// Half a line at a time: a shift and a mask for each plane, and what turns codes into levels.
#include "codecs/interleaved.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// The zeros of 8 rows, each in the four bytes of its row.
inline __m256i spread_zeros(const uint8_t* zeros) {
  const __m256i wide =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
  return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
}

// What a plane of this width has of 32 bytes of quad q, masked.
inline __m256i fields(const uint8_t* plane, int width, int64_t q, int half) {
  const int64_t per_line = 8 / width;
  const __m256i line =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane + q / per_line * 64 + 32 * half));
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(q % per_line) * width);
  return _mm256_and_si256(_mm256_srl_epi16(line, shift),
                          _mm256_set1_epi8(static_cast<char>((1 << width) - 1)));
}

// How codes become levels: tables of 16 by a byte shuffle, whole numbers by a sum, others one by
// one.
class Levels {
 public:
  Levels(const uint8_t* levels, int bits)
      : all_(levels),
        is_small_(bits <= 4),
        first_(_mm256_set1_epi8(static_cast<char>(levels[0]))),
        small_(_mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)))) {
    for (unsigned i = 0; i < 1u << bits; ++i) {
      is_sum_ = is_sum_ && levels[i] == static_cast<uint8_t>(levels[0] + i);
    }
  }
  __m256i of(__m256i codes) const {
    if (is_small_) return _mm256_shuffle_epi8(small_, codes);
    if (is_sum_) return _mm256_add_epi8(codes, first_);
    alignas(32) uint8_t bytes[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), codes);
    for (uint8_t& byte : bytes) byte = all_[byte];
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
  }

 private:
  const uint8_t* all_;
  bool is_small_, is_sum_ = true;
  __m256i first_, small_;
};

}  // namespace

void interleaved_levels_avx2(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  const Levels table(panel.levels, panel.low_bits + panel.high_bits);
  const __m128i above = _mm_cvtsi32_si128(panel.low_bits);
  for (int64_t q = 0; q < n_quads; ++q, levels += 64) {
    for (int half = 0; half < 2; ++half) {
      __m256i code = fields(panel.low, panel.low_bits, q, half);
      if (panel.high != nullptr) {
        const __m256i high = fields(panel.high, panel.high_bits, q, half);
        code = _mm256_or_si256(code, _mm256_sll_epi16(high, above));
      }
      __m256i level = table.of(code);
      if (panel.zeros != nullptr) {
        const uint8_t* zeros = panel.zeros + q * 4 / panel.group * kPanelRows + 8 * half;
        level = _mm256_sub_epi8(level, spread_zeros(zeros));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + 32 * half), level);
    }
  }
}

}  // namespace quern
