// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "codecs/byte_table_avx512.h"
#include "codecs/interleaved_lines.h"

namespace quern {
namespace {

struct Line {
  __m512i v;
  static Line load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  static Line spread(const uint8_t* rows) {
    const __m512i wide =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows)));
    return {_mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101))};
  }
  template <int n>
  Line right() const {
    return {_mm512_srli_epi16(v, n)};
  }
  template <int n>
  Line left() const {
    return {_mm512_slli_epi16(v, n)};
  }
  static Line where(int mask, Line a, Line b) {
    const __m512i bits = _mm512_set1_epi8(static_cast<char>(mask));
    return {_mm512_ternarylogic_epi32(bits, a.v, b.v, 0xca)};
  }
  friend Line operator-(Line a, Line b) { return {_mm512_sub_epi8(a.v, b.v)}; }
};

template <int kBits>
struct Table {
  explicit Table(const uint8_t* levels) : bytes(levels) {}
  Line operator()(Line code) const { return {bytes(code.v)}; }
  ByteTable<std::max(kBits, 6)> bytes;
};

}  // namespace

void interleaved_levels_avx512(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  interleaved_levels<Line, Table>(panel, n_quads, levels);
}

}  // namespace quern
