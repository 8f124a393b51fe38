// SPDX-License-Identifier: Apache-2.0
// Sixteen floats as lanes.h and vec_math.h take them, in two registers of AVX2.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"
#include "kernels/vec_math.h"

namespace quern {
namespace {  // NOLINT: internal linkage, as vec_math.h demands

struct Lanes {
  static constexpr int kBlockRows = 2, kBlockColumns = 2;  // axpy_rows: 8 sums of 16 registers
  static constexpr int kFwhtStages = 3, kMixColumns = 2;
  static constexpr int kHalfRows = 2, kHalfColumns = 2;
  static constexpr int kPairRows = 2, kPairColumns = 1;  // 4 sums, even and odd
  __m256 lo, hi;

  static Lanes set(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
  static Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static __m256i first8(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // Masked accesses to lanes past the end touch no memory.
  static Lanes load_first(const float* p, int n) {
    return {_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store_first(float* p, int n) const {
    _mm256_maskstore_ps(p, first8(n), lo);
    _mm256_maskstore_ps(p + 8, first8(n - 8), hi);
  }
  static Lanes keep_first(Lanes a, int n, float fill) {
    const __m256 f = _mm256_set1_ps(fill);
    return {_mm256_blendv_ps(f, a.lo, _mm256_castsi256_ps(first8(n))),
            _mm256_blendv_ps(f, a.hi, _mm256_castsi256_ps(first8(n - 8)))};
  }

  static Lanes add(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  static Lanes sub(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  static Lanes mul(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  static Lanes div(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static Lanes min(Lanes a, Lanes b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
  }
  static Lanes max(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  static Lanes abs(Lanes a) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(bit, a.lo), _mm256_andnot_ps(bit, a.hi)};
  }
  static Lanes negate(Lanes a) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(bit, a.lo), _mm256_xor_ps(bit, a.hi)};
  }
  static Lanes copy_sign(Lanes a, Lanes sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, a.lo), _mm256_and_ps(bit, sign.lo)),
            _mm256_or_ps(_mm256_andnot_ps(bit, a.hi), _mm256_and_ps(bit, sign.hi))};
  }
  static Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
  }
  static __m256 times_power8(__m256 a, __m256 shifted) {
    const __m256i magic = _mm256_castps_si256(_mm256_set1_ps(vec_math::kMagic));
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), magic);
    const __m256i half = _mm256_srai_epi32(n, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 power1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256i rest = _mm256_add_epi32(_mm256_sub_epi32(n, half), bias);
    const __m256 power2 = _mm256_castsi256_ps(_mm256_slli_epi32(rest, 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, power1), power2);
  }
  static Lanes times_power(Lanes a, Lanes shifted) {
    return {times_power8(a.lo, shifted.lo), times_power8(a.hi, shifted.hi)};
  }

  static float sum(Lanes a) {
    const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  static float max_of(Lanes a) {
    const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
  }

  static __m128i load8(const char* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static Lanes from_half(const char* p) {
    return {_mm256_cvtph_ps(load8(p)), _mm256_cvtph_ps(load8(p + 16))};
  }
  static __m256 from_bf16_8(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Lanes from_bf16(const char* p) {
    return {from_bf16_8(load8(p)), from_bf16_8(load8(p + 16))};
  }
  static __m256i load_pairs(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Lanes first_of_pairs(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(p + 16), 16))};
  }
  static Lanes second_of_pairs(const uint16_t* p) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(load_pairs(p), upper)),
            _mm256_castsi256_ps(_mm256_and_si256(load_pairs(p + 16), upper))};
  }
  static void to_half8(__m256 a, char* p) {
    const __m128i half = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i sign = _mm_and_si128(half, _mm_set1_epi16(static_cast<short>(0x8000)));
    const __m128i magnitude = _mm_xor_si128(half, sign);
    const __m128i is_nan = _mm_cmpgt_epi16(magnitude, _mm_set1_epi16(0x7c00));
    const __m128i nan = _mm_or_si128(sign, _mm_set1_epi16(0x7e00));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_blendv_epi8(half, nan, is_nan));
  }
  static void to_half(Lanes a, char* p) {
    to_half8(a.lo, p);
    to_half8(a.hi, p + 16);
  }

  template <int h>
  static __m256 butterfly8(__m256 a) {
    __m256 other;
    if constexpr (h == 1) other = _mm256_permute_ps(a, 0xb1);
    if constexpr (h == 2) other = _mm256_permute_ps(a, 0x4e);
    if constexpr (h == 4) other = _mm256_permute2f128_ps(a, a, 1);
    constexpr int kUpper = h == 1 ? 0xaa : h == 2 ? 0xcc : 0xf0;
    const __m256 sign = _mm256_blend_ps(_mm256_set1_ps(1), _mm256_set1_ps(-1), kUpper);
    return _mm256_fmadd_ps(a, sign, other);  // products by one are exact
  }
  template <int h>
  static Lanes butterfly(Lanes a) {
    if constexpr (h == 8) {
      return {_mm256_add_ps(a.lo, a.hi), _mm256_sub_ps(a.lo, a.hi)};
    } else {
      return {butterfly8<h>(a.lo), butterfly8<h>(a.hi)};
    }
  }
};

}  // namespace
}  // namespace quern
