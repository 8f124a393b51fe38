// SPDX-License-Identifier: Apache-2.0
// Eight blocks at once: their rows are gathered as 64-bit words of eight quarters; the eight sign
// bytes, once parities are folded in, are the mask of the 64 negations as they stand.
#include "codecs/e8p_search.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

struct Lanes {
  typedef float Floats __attribute__((vector_size(64)));
  typedef int32_t Ints __attribute__((vector_size(64)));
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static void offer(Floats candidate, Ints candidate_row, Floats& score, Ints& row) {
    const __mmask16 is_better = _mm512_cmp_ps_mask(candidate, score, _CMP_GT_OQ);
    score = _mm512_mask_mov_ps(score, is_better, candidate);
    row = reinterpret_cast<Ints>(_mm512_mask_mov_epi32(reinterpret_cast<__m512i>(row), is_better,
                                                       reinterpret_cast<__m512i>(candidate_row)));
  }
};

// The points of eight codes, in quarters.
inline __m512i eight_points(const E8pTables& t, __m128i codes) {
  const __m512i wide = _mm512_cvtepu16_epi64(codes);
  __m512i points = _mm512_i64gather_epi64(_mm512_srli_epi64(wide, 8),
                                          reinterpret_cast<const long long*>(t.points), 8);
  const __m128i low_bytes =
      _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1);
  const auto signs = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_shuffle_epi8(codes, low_bytes)));
  uint64_t odd = signs ^ (signs >> 4);
  odd ^= odd >> 2;
  odd = (odd ^ (odd >> 1)) & 0x0101010101010101u;
  points = _mm512_mask_sub_epi8(points, signs ^ odd, _mm512_setzero_si512(), points);
  const __m512i shift = _mm512_mask_mov_epi8(_mm512_set1_epi8(1), odd * 255, _mm512_set1_epi8(-1));
  return _mm512_add_epi8(points, shift);
}

inline __m128i eight_codes(const uint8_t* codes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
}

template <int kQuarter>
inline __m512 sixteen(__m512i points) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(points, kQuarter)));
}

template <int kQuarter, bool kHasResidual>
inline void store_quarter(__m512i points, __m512i residual, __m512 ratio, __m512 scale,
                          float* dst) {
  __m512 value = sixteen<kQuarter>(points);
  if (kHasResidual) value = _mm512_add_ps(value, _mm512_mul_ps(ratio, sixteen<kQuarter>(residual)));
  _mm512_storeu_ps(dst + 16 * kQuarter, _mm512_mul_ps(scale, value));
}

template <E8pResidual kKind>
void decode(const E8pTables& t, const E8pRow& row, float* dst) {
  constexpr bool kHasResidual = kKind != E8pResidual::kNone;
  const __m512 scale = _mm512_set1_ps(0.25f * row.scale), ratio = _mm512_set1_ps(row.inverse_ratio);
  int64_t j = 0;
  for (; j + 64 <= row.n; j += 64, dst += 64) {
    const __m512i points = eight_points(t, eight_codes(row.codes + j / 4));
    __m512i residual = _mm512_setzero_si512();
    if (kKind == E8pResidual::kE8) {
      const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.residual + j / 8));
      residual = _mm512_i64gather_epi64(_mm512_cvtepu8_epi64(codes),
                                        reinterpret_cast<const long long*>(t.e8), 8);
    } else if (kKind == E8pResidual::kE8p) {
      residual = eight_points(t, eight_codes(row.residual + j / 4));
    }
    store_quarter<0, kHasResidual>(points, residual, ratio, scale, dst);
    store_quarter<1, kHasResidual>(points, residual, ratio, scale, dst);
    store_quarter<2, kHasResidual>(points, residual, ratio, scale, dst);
    store_quarter<3, kHasResidual>(points, residual, ratio, scale, dst);
  }
  if (j == row.n) return;
  E8pRow tail = row;
  tail.codes += j / 4;
  if (kHasResidual) tail.residual += j / (kKind == E8pResidual::kE8 ? 8 : 4);
  tail.n -= j;
  e8p_kernels_ref.decode_row(t, tail, dst);
}

void decode_row(const E8pTables& t, const E8pRow& row, float* dst) {
  switch (row.kind) {
    case E8pResidual::kNone:
      return decode<E8pResidual::kNone>(t, row, dst);
    case E8pResidual::kE8:
      return decode<E8pResidual::kE8>(t, row, dst);
    case E8pResidual::kE8p:
      return decode<E8pResidual::kE8p>(t, row, dst);
  }
}

}  // namespace

const E8pKernels e8p_kernels_avx512 = {E8pSearch<Lanes>::nearest, E8pSearch<Lanes>::nearest_e8,
                                       decode_row};

}  // namespace quern
