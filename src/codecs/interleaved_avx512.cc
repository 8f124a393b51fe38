// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "codecs/byte_table_avx512.h"
#include "codecs/interleaved_lines.h"
#include "codecs/panel_dots_avx512.h"

namespace quern {
namespace {

struct Line512 {
  __m512i v;
  static Line512 load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  static Line512 spread(const uint8_t* rows) {
    const __m512i wide =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows)));
    return {_mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101))};
  }
  template <int n>
  Line512 right() const {
    return {_mm512_srli_epi16(v, n)};
  }
  template <int n>
  Line512 left() const {
    return {_mm512_slli_epi16(v, n)};
  }
  static Line512 where(int mask, Line512 a, Line512 b) {
    const __m512i bits = _mm512_set1_epi8(static_cast<char>(mask));
    return {_mm512_ternarylogic_epi32(bits, a.v, b.v, 0xca)};
  }
  friend Line512 operator-(Line512 a, Line512 b) { return {_mm512_sub_epi8(a.v, b.v)}; }
};

struct Kit {
  using Line = Line512;
  using Floats = Lanes;

  template <int kBits>
  struct Table {
    explicit Table(const uint8_t* levels) : bytes(levels) {}
    Line operator()(Line code) const { return {bytes(code.v)}; }
    ByteTable<std::max(kBits, 6)> bytes;
  };

  struct Dots : PanelDots {
    using PanelDots::add;
    void add(Line levels, const int8_t* x) { add(levels.v, x); }
  };
};

}  // namespace

void interleaved_levels_avx512(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  interleaved_levels<Kit>(panel, n_quads, levels);
}

void interleaved_dot_avx512(const InterleavedProduct& product, float* y) {
  interleaved_dot<Kit>(product, y);
}

}  // namespace quern
