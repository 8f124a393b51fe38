// SPDX-License-Identifier: Apache-2.0
// Dots of the 16 rows of a panel with one row of activations, while levels are in registers.
// kernels/panels.h has the product. Only for sources compiled for AVX-512.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/lanes_avx512.h"

namespace quern {
namespace {  // NOLINT: internal linkage, as lanes_avx512.h

struct PanelDots {
  __m512i v = _mm512_setzero_si512();
  // A line of levels and four activations.
  void add(__m512i levels, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    v = _mm512_dpbusd_epi32(v, levels, _mm512_set1_epi32(four));
  }
  void add(PanelDots other) { v = _mm512_add_epi32(v, other.v); }
  // `offset` is -128 times the sum of all activations.
  Lanes sums(int32_t offset) const {
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(v, _mm512_set1_epi32(offset)))};
  }
};

}  // namespace
}  // namespace quern
