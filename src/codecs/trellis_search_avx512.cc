// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "codecs/trellis_levels_avx512.h"
#include "codecs/trellis_search.h"

namespace quern {
namespace {

template <int kLevelBits>
void step_avx512(const TrellisCode& code, const TrellisStep& step, TrellisBeam& from,
                 TrellisBeam& to, float* costs, float& width) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const TrellisLevels<kLevelBits> levels(code);
  const int n_padded = (from.n + 15) / 16 * 16, branches = 1 << step.bits;
  for (int i = from.n; i < n_padded; ++i) from.cost[static_cast<size_t>(i)] = kInfinity;
  const __m512 target = _mm512_set1_ps(step.target), weight = _mm512_set1_ps(step.weight);
  const auto window = [&](int branch, int i) {
    const __m512i state = _mm512_load_si512(&from.state[static_cast<size_t>(i)]);
    return _mm512_or_si512(_mm512_slli_epi32(state, static_cast<unsigned>(step.bits)),
                           _mm512_set1_epi32(branch));
  };
  __m512 smallest = _mm512_set1_ps(kInfinity);
  for (int b = 0; b < branches; ++b) {
    for (int i = 0; i < n_padded; i += 16) {
      const __m512 value = _mm512_cvtepi32_ps(levels.values(window(b, i)));
      const __m512 difference = _mm512_sub_ps(target, value);
      const __m512 cost = _mm512_fmadd_ps(_mm512_mul_ps(weight, difference), difference,
                                          _mm512_load_ps(&from.cost[static_cast<size_t>(i)]));
      _mm512_storeu_ps(costs + b * n_padded + i, cost);
      smallest = _mm512_min_ps(smallest, cost);
    }
  }
  const float least = _mm512_reduce_min_ps(smallest);
  float threshold = kInfinity;
  if (branches * from.n > step.limit) {
    threshold = trellis_threshold(least, width, step.limit, [&](float t) {
      const __m512 bound = _mm512_set1_ps(t);
      int count = 0;
      for (int i = 0; i < branches * n_padded; i += 16) {
        count +=
            __builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(costs + i), bound, _CMP_LT_OQ));
      }
      return count;
    });
    width = threshold - least;
  }
  const __m512 bound = _mm512_set1_ps(threshold), base = _mm512_set1_ps(least);
  int kept = 0;
  for (int b = 0; b < branches && kept < step.limit; ++b) {
    for (int i = 0; i < n_padded && kept < step.limit; i += 16) {
      const __m512 cost = _mm512_loadu_ps(costs + b * n_padded + i);
      const __mmask16 keep = _mm512_cmp_ps_mask(cost, bound, _CMP_LT_OQ);
      const auto at = static_cast<size_t>(kept);
      const auto place = static_cast<size_t>(i);
      // Room for 16 more lets whole vectors be stored; a compressing store to memory is slower.
      _mm512_storeu_ps(&to.cost[at], _mm512_maskz_compress_ps(keep, _mm512_sub_ps(cost, base)));
      _mm512_storeu_si512(&to.state[at], _mm512_maskz_compress_epi32(keep, window(b, i)));
      _mm512_storeu_si512(&to.origin[at], _mm512_maskz_compress_epi32(
                                              keep, _mm512_load_si512(&from.origin[place])));
      kept += __builtin_popcount(keep);
    }
  }
  to.n = kept < step.limit ? kept : step.limit;
}

}  // namespace

void trellis_step_avx512(const TrellisCode& code, const TrellisStep& step, TrellisBeam& from,
                         TrellisBeam& to, float* costs, float& width) {
  if (code.level_bits == 6) return step_avx512<6>(code, step, from, to, costs, width);
  if (code.level_bits == 7) return step_avx512<7>(code, step, from, to, costs, width);
  step_avx512<8>(code, step, from, to, costs, width);
}

}  // namespace quern
