// SPDX-License-Identifier: Apache-2.0
// Rounding of sixteen groups of numbers at once: GroupRounding of panels_round.h in a vector, and
// what all of them need of their lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1);
}

// Lane r of the result is `join` of all lanes of v[r], those that lie farthest apart first.
template <class Join>
inline __m512i reduce_each(const __m512i (&v)[16], const Join& join) {
  __m512i t[8];
  for (int i = 0; i < 8; ++i) {  // slot 4 k + i is of row 4 i + k: it ends up in that lane
    const int k = i / 2, at = i % 2 * 8;
    const __m512i a = v[at + k], b = v[at + 4 + k];
    t[i] = join(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = join(_mm512_shuffle_i64x2(t[2 * i], t[2 * i + 1], 0x88),
                _mm512_shuffle_i64x2(t[2 * i], t[2 * i + 1], 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    t[i] = join(_mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]),
                _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
  }
  const __m512 x = _mm512_castsi512_ps(t[0]), y = _mm512_castsi512_ps(t[1]);
  return join(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
              _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}

inline __m512i largest_of_each(const __m512i (&v)[16]) {
  return reduce_each(v, [](__m512i a, __m512i b) { return _mm512_max_epu32(a, b); });
}
inline __m512i sum_of_each(const __m512i (&v)[16]) {
  return reduce_each(v, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
}
// In the order of Lanes::sum.
inline __m512 float_sum_of_each(const __m512i (&v)[16]) {
  return _mm512_castsi512_ps(reduce_each(v, [](__m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
  }));
}

// GroupRounding of the 16 groups.
struct GroupRoundings {
  __m512 scales, to_levels;

  explicit GroupRoundings(__m512i largest, float most = 127) {
    const __mmask16 is_special = _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(0x7f800000));
    const __mmask16 is_number = _mm512_mask_cmpge_epu32_mask(
        static_cast<__mmask16>(~is_special), largest, _mm512_set1_epi32((127 - 100) << 23));
    const __m512 top = _mm512_castsi512_ps(largest), levels = _mm512_set1_ps(most);
    scales = _mm512_mask_mov_ps(_mm512_maskz_div_ps(is_number, top, levels), is_special,
                                _mm512_set1_ps(NAN));
    to_levels = _mm512_maskz_div_ps(is_number, levels, top);
  }
};

}  // namespace quern
