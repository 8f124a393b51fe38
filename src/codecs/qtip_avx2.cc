// SPDX-License-Identifier: Apache-2.0
// The search of qtip_avx512.cc, 8 overlaps at a time.
#include <cstring>

#include "codecs/qtip.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// best[lane >> kShift] for 8 lanes; best on a boundary of 8 >> kShift floats. kShift 3: all lanes
// the same.
template <int kShift>
__m256 repeat(const float* best, __m256i index) {
  if constexpr (kShift == 1) {
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_load_ps(best)), index);
  } else if constexpr (kShift == 2) {
    double pair;
    std::memcpy(&pair, best, 8);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_castpd_ps(_mm_set_sd(pair))), index);
  } else {
    return _mm256_set1_ps(*best);
  }
}

template <int kShift, int kWeights>
void step_of(const QtipTrellis& trellis, const QtipStep& step) {
  const int64_t n_overlaps = trellis.n_overlaps();
  const int n_branches = 1 << trellis.step_bits;
  const __m256i index = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), kShift);
  const __m256i low_bytes = _mm256_set1_epi32(0x0c080400);
  const float* second = step.codewords + trellis.n_states();
  const __m256 target = _mm256_set1_ps(step.target[0]);
  const __m256 root = _mm256_set1_ps(step.root_weight[0]);
  const __m256 target2 = _mm256_set1_ps(step.target[kWeights - 1]);
  const __m256 root2 = _mm256_set1_ps(step.root_weight[kWeights - 1]);
  for (int64_t e = 0; e < n_overlaps; e += 8) {
    __m256 least = _mm256_setzero_ps();
    __m256i back = _mm256_setzero_si256();
    for (int b = 0; b < n_branches; ++b) {
      const int64_t state = e + b * n_overlaps;
      __m256 cost = repeat<kShift>(step.best + (state >> trellis.step_bits), index);
      const __m256 difference =
          _mm256_fnmadd_ps(root, _mm256_loadu_ps(step.codewords + state), target);
      cost = _mm256_fmadd_ps(difference, difference, cost);
      if constexpr (kWeights == 2) {
        const __m256 difference2 =
            _mm256_fnmadd_ps(root2, _mm256_loadu_ps(second + state), target2);
        cost = _mm256_fmadd_ps(difference2, difference2, cost);
      }
      if (b == 0) {
        least = cost;
        continue;
      }
      const __m256 is_less = _mm256_cmp_ps(cost, least, _CMP_LT_OQ);
      least = _mm256_blendv_ps(least, cost, is_less);
      back = _mm256_blendv_epi8(back, _mm256_set1_epi32(b), _mm256_castps_si256(is_less));
    }
    _mm256_store_ps(step.next + e, least);
    const __m256i bytes = _mm256_shuffle_epi8(back, low_bytes);
    const int low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    std::memcpy(step.back + e, &low, 4);
    std::memcpy(step.back + e + 4, &high, 4);
  }
}

}  // namespace

void qtip_step_avx2(const QtipTrellis& trellis, const QtipStep& step) {
  if (trellis.step_weights == 1) {
    switch (trellis.step_bits) {
      case 1:
        return step_of<1, 1>(trellis, step);
      case 2:
        return step_of<2, 1>(trellis, step);
      default:
        return step_of<3, 1>(trellis, step);
    }
  }
  return trellis.step_bits == 2 ? step_of<2, 2>(trellis, step) : step_of<3, 2>(trellis, step);
}

}  // namespace quern
