// SPDX-License-Identifier: Apache-2.0
// Sixteen floats as lanes.h and vec_math.h take them, in AVX-512.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"
#include "kernels/vec_math.h"

namespace quern {
namespace {  // NOLINT: internal linkage, as vec_math.h demands

struct Lanes {
  static constexpr int kBlockRows = 4, kBlockColumns = 4;  // axpy_rows: 16 sums of 32 registers
  static constexpr int kFwhtStages = 4, kMixColumns = 4;
  static constexpr int kHalfRows = 8, kHalfColumns = 2;  // each half becomes a float once for 8
  static constexpr int kPairRows = 4, kPairColumns = 2;  // 16 sums
  __m512 v;

  static Lanes set(float a) { return {_mm512_set1_ps(a)}; }
  static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Lanes load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  static Lanes keep_first(Lanes a, int n, float fill) {
    return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), a.v)};
  }

  static Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Lanes abs(Lanes a) { return {_mm512_abs_ps(a.v)}; }
  static Lanes negate(Lanes a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
  static Lanes copy_sign(Lanes a, Lanes sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, a.v), _mm512_and_ps(bit, sign.v))};
  }
  static Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
    return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), x.v)};
  }
  static Lanes times_power(Lanes a, Lanes shifted) {
    return {_mm512_scalef_ps(a.v, _mm512_sub_ps(shifted.v, _mm512_set1_ps(vec_math::kMagic)))};
  }

  static float sum(Lanes a) {
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  static float max_of(Lanes a) {
    const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
  }

  static Lanes from_half(const char* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Lanes from_bf16(const char* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Lanes first_of_pairs(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
  }
  static Lanes second_of_pairs(const uint16_t* p) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), upper))};
  }
  static void to_half(Lanes a, char* p) {
    const __m256i half = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m256i sign = _mm256_and_si256(half, _mm256_set1_epi16(static_cast<short>(0x8000)));
    const __m256i nan = _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_mask_mov_epi16(half, is_nan, nan));
  }

  // Lane l becomes v[l] + v[l + h] where bit h of l is clear, v[l - h] - v[l] where it is set.
  template <int h>
  static Lanes butterfly(Lanes a) {
    __m512 other;
    if constexpr (h == 1) other = _mm512_permute_ps(a.v, 0xb1);
    if constexpr (h == 2) other = _mm512_permute_ps(a.v, 0x4e);
    if constexpr (h == 4) other = _mm512_shuffle_f32x4(a.v, a.v, 0xb1);
    if constexpr (h == 8) other = _mm512_shuffle_f32x4(a.v, a.v, 0x4e);
    constexpr __mmask16 kUpper = h == 1 ? 0xaaaa : h == 2 ? 0xcccc : h == 4 ? 0xf0f0 : 0xff00;
    const __m512 sign = _mm512_mask_mov_ps(_mm512_set1_ps(1), kUpper, _mm512_set1_ps(-1));
    return {_mm512_fmadd_ps(a.v, sign, other)};  // products by one are exact
  }
};

}  // namespace
}  // namespace quern
