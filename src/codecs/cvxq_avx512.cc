// SPDX-License-Identifier: Apache-2.0
// 16 columns at a time: one gather takes the bytes around each code, another its level.
#include "codecs/cvxq.h"
#include "kernels/intrinsics.h"

namespace quern {

void cvxq_decode_row_avx512(const CvxqCluster& cluster, const float* levels, const uint8_t* stream,
                            float* dst) {
  const auto n = static_cast<int64_t>(cluster.bit.size());
  const __m512i one = _mm512_set1_epi32(1);
  for (int64_t j = 0; j < n; j += 16) {
    const auto lanes = static_cast<__mmask16>(n - j >= 16 ? 0xffff : (1u << (n - j)) - 1);
    const __m512i bit = _mm512_maskz_loadu_epi32(lanes, cluster.bit.data() + j);
    const __m512i depth = _mm512_maskz_loadu_epi32(lanes, cluster.depth.data() + j);
    const __m512i word = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes,
                                                     _mm512_srli_epi32(bit, 3), stream, 1);
    // 2^depth - 1 masks the code and is where the levels of this depth begin.
    const __m512i first = _mm512_sub_epi32(_mm512_sllv_epi32(one, depth), one);
    const __m512i shifted = _mm512_srlv_epi32(word, _mm512_and_epi32(bit, _mm512_set1_epi32(7)));
    const __m512i at = _mm512_add_epi32(_mm512_and_epi32(shifted, first), first);
    const __m512 level = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, at, levels, 4);
    const __m512 scale = _mm512_maskz_loadu_ps(lanes, cluster.scale.data() + j);
    const __m512 centre = _mm512_maskz_loadu_ps(lanes, cluster.centre.data() + j);
    _mm512_mask_storeu_ps(dst + j, lanes, _mm512_add_ps(centre, _mm512_mul_ps(scale, level)));
  }
}

}  // namespace quern
