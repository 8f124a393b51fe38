// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "codecs/byte_table_avx2.h"
#include "codecs/interleaved_lines.h"
#include "kernels/lanes_avx2.h"

namespace quern {
namespace {

struct Line256 {
  __m256i lo, hi;
  static __m256i load_half(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Line256 load(const uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
  void store(uint8_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), hi);
  }
  static __m256i spread_half(const uint8_t* rows) {
    const __m256i wide =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows)));
    return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
  }
  static Line256 spread(const uint8_t* rows) { return {spread_half(rows), spread_half(rows + 8)}; }
  template <int n>
  Line256 right() const {
    return {_mm256_srli_epi16(lo, n), _mm256_srli_epi16(hi, n)};
  }
  template <int n>
  Line256 left() const {
    return {_mm256_slli_epi16(lo, n), _mm256_slli_epi16(hi, n)};
  }
  static Line256 where(int mask, Line256 a, Line256 b) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
    const auto half = [&](__m256i x, __m256i y) {
      return _mm256_or_si256(_mm256_and_si256(bits, x), _mm256_andnot_si256(bits, y));
    };
    return {half(a.lo, b.lo), half(a.hi, b.hi)};
  }
  friend Line256 operator-(Line256 a, Line256 b) {
    return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
  }
};

struct Kit {
  using Line = Line256;
  using Floats = Lanes;

  template <int kBits>
  struct Table {
    explicit Table(const uint8_t* levels) : bytes(levels) {}
    Line operator()(Line code) const { return {bytes(code.lo), bytes(code.hi)}; }
    ByteTable<kBits> bytes;
  };

  struct Dots {
    __m256i lo = _mm256_setzero_si256(), hi = lo;
    void add(Line levels, const int8_t* x) {
      int32_t four;
      std::memcpy(&four, x, 4);
      lo = _mm256_add_epi32(lo, quads(levels.lo, _mm256_set1_epi32(four)));
      hi = _mm256_add_epi32(hi, quads(levels.hi, _mm256_set1_epi32(four)));
    }
    void add(Dots other) {
      lo = _mm256_add_epi32(lo, other.lo);
      hi = _mm256_add_epi32(hi, other.hi);
    }
    Floats sums(int32_t /*offset*/) const {
      return {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)};
    }

   private:
    // As in kernels/panels_avx2.cc.
    static __m256i quads(__m256i levels, __m256i x) {
      const __m256i w = _mm256_xor_si256(levels, _mm256_set1_epi8(static_cast<char>(kPanelZero)));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
      return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
  };
};

}  // namespace

void interleaved_levels_avx2(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  interleaved_levels<Kit>(panel, n_quads, levels);
}

void interleaved_dot_avx2(const InterleavedProduct& product, float* y) {
  interleaved_dot<Kit>(product, y);
}

}  // namespace quern
