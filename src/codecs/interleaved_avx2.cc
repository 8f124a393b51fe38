// SPDX-License-Identifier: Apache-2.0
#include "codecs/byte_table_avx2.h"
#include "codecs/interleaved_lines.h"

namespace quern {
namespace {

struct Line {
  __m256i lo, hi;
  static __m256i load_half(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Line load(const uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
  void store(uint8_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), hi);
  }
  static __m256i spread_half(const uint8_t* rows) {
    const __m256i wide =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows)));
    return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
  }
  static Line spread(const uint8_t* rows) { return {spread_half(rows), spread_half(rows + 8)}; }
  template <int n>
  Line right() const {
    return {_mm256_srli_epi16(lo, n), _mm256_srli_epi16(hi, n)};
  }
  template <int n>
  Line left() const {
    return {_mm256_slli_epi16(lo, n), _mm256_slli_epi16(hi, n)};
  }
  static Line where(int mask, Line a, Line b) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
    const auto half = [&](__m256i x, __m256i y) {
      return _mm256_or_si256(_mm256_and_si256(bits, x), _mm256_andnot_si256(bits, y));
    };
    return {half(a.lo, b.lo), half(a.hi, b.hi)};
  }
  friend Line operator-(Line a, Line b) {
    return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
  }
};

template <int kBits>
struct Table {
  explicit Table(const uint8_t* levels) : bytes(levels) {}
  Line operator()(Line code) const { return {bytes(code.lo), bytes(code.hi)}; }
  ByteTable<kBits> bytes;
};

}  // namespace

void interleaved_levels_avx2(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  interleaved_levels<Line, Table>(panel, n_quads, levels);
}

}  // namespace quern
