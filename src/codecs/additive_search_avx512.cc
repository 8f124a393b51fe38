// SPDX-License-Identifier: Apache-2.0
// Scores of 64 points for four slopes stay in registers from the offsets to the maximum.
#include "codecs/additive.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

constexpr int kVectors = 4;  // of points

// Places [first, first + 64) of kN slopes.
template <int kN>
void best_of_64(const AdditiveScoring& s, int64_t slope, int64_t first, float* best,
                int32_t* place) {
  __m512 sum[kN][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m512 offset = _mm512_loadu_ps(s.offsets + first + 16 * v);
    for (int i = 0; i < kN; ++i) sum[i][v] = offset;
  }
  const float* slopes = s.slopes + slope * s.dim;
  for (int t = 0; t < s.dim; ++t) {
    __m512 row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = _mm512_loadu_ps(s.points + t * s.n_points + first + 16 * v);
    }
    for (int i = 0; i < kN; ++i) {
      const __m512 factor = _mm512_set1_ps(slopes[i * s.dim + t]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(factor, row[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kN; ++i) {
    const __m512 most =
        _mm512_max_ps(_mm512_max_ps(sum[i][0], sum[i][1]), _mm512_max_ps(sum[i][2], sum[i][3]));
    float& top = best[slope + i];
    if (_mm512_cmp_ps_mask(most, _mm512_set1_ps(top), _CMP_GT_OQ) == 0) continue;
    top = _mm512_reduce_max_ps(most);
    uint64_t equal = 0;
    for (int v = 0; v < kVectors; ++v) {
      equal |= uint64_t{_mm512_cmp_ps_mask(sum[i][v], _mm512_set1_ps(top), _CMP_EQ_OQ)} << 16 * v;
    }
    place[slope + i] = static_cast<int32_t>(first + __builtin_ctzll(equal));
  }
}

}  // namespace

void additive_best_avx512(const AdditiveScoring& s, float* best, int32_t* place) {
  for (int64_t first = 0; first < s.n_points; first += 16 * kVectors) {
    int64_t i = 0;
    for (; i + 4 <= s.n; i += 4) best_of_64<4>(s, i, first, best, place);
    for (; i < s.n; ++i) best_of_64<1>(s, i, first, best, place);
  }
}

int64_t additive_places_avx512(float least, const float* scores, int64_t n, uint16_t* places) {
  const __m512 bound = _mm512_set1_ps(least);
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += 16, place = _mm512_add_epi32(place, _mm512_set1_epi32(16))) {
    const auto valid = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
    const __mmask16 reach =
        _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, scores + i), bound, _CMP_GE_OQ);
    if (reach == 0) continue;
    _mm512_mask_cvtepi32_storeu_epi16(places + found,
                                      static_cast<__mmask16>((1u << __builtin_popcount(reach)) - 1),
                                      _mm512_maskz_compress_epi32(reach, place));
    found += __builtin_popcount(reach);
  }
  return found;
}

}  // namespace quern
