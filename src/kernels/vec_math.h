// SPDX-License-Identifier: Apache-2.0
// exp, tanh, erf and the activations, written once over a type of lanes, so that every ISA performs
// the same operations in the same order and gives the same bits.
//
// V is one float or sixteen, with static members: set, add, sub, mul, div, fma(a, b, c) = a b + c,
// min(a, b) = a < b ? a : b, max(a, b) = a > b ? a : b (so that a NaN in b goes through), abs,
// copy_sign(magnitude, sign), select_less(a, b, x, y) = a < b ? x : y, and
// times_power(a, n + kMagic) = a 2^n, rounded once.
// V must have internal linkage (an unnamed namespace): files of different ISAs instantiate these
// templates under different compile flags, and no linker may merge them.
//
// exp(x): n = round(x / ln 2) by adding 1.5 * 2^23; r = x - n ln 2 with ln 2 in two floats;
// e^r = 1 + r + r^2 p(r) with p of degree 4, minimax on |r| <= ln 2 / 2 (relative error 3.2e-9, so
// rounding dominates: 1.01 ulp at worst in the tests); 2^n as two factors, so that results go
// gradually to 0 below and to inf above. Arguments are clamped to [-104, 89], where both have
// happened. tanh(x) = t / (t + 2), t = e^(2|x|) - 1 from the same p without cancellation: 2.1 ulp.
// exp2(x), for weights of attention: 2^n 2^f with n = round(x) and 2^f of degree 5, minimax on
// |f| <= 1/2 (relative error 1.1e-7 with the coefficients' own rounding).
// erf(x): |x| < 0.9375: x + x p(x^2), degree 5, error 8.5e-9; above: 1 - exp(-x + x q(x)), q of
// degree 5 fitted to log(erfc) with error 2.8e-9 in erf; 1 from 4 on. Absolute error below 2e-7.
// The fits are Lawson iterations of least squares in exact arithmetic on 120 to 150 Chebyshev
// nodes.
#pragma once

#include <cstdint>

#include "kernels/activation.h"
#include "kernels/pair_product.h"

namespace quern {

// Natural logarithm of a positive normal float (infinity and NaN pass), computed in double with
// written operations only.
float log_of(float x);

namespace vec_math {

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its last bit is worth 1
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2High = 0x1.62e43p-1f;
constexpr float kLn2Low = -0x1.05c61p-29f;

// e^r - 1 for |r| <= ln 2 / 2.
template <class V>
static inline V exp_minus_one_reduced(V r) {
  V p = V::set(0x1.6db4d4p-10f);
  p = V::fma(p, r, V::set(0x1.123be2p-7f));
  p = V::fma(p, r, V::set(0x1.55545ep-5f));
  p = V::fma(p, r, V::set(0x1.55548ep-3f));
  p = V::fma(p, r, V::set(0.5f));
  return V::fma(p, V::mul(r, r), r);
}

// Splits x = n ln 2 + r; `shifted` holds n in its last bits.
template <class V>
static inline V reduce_exponent(V x, V& shifted) {
  shifted = V::fma(x, V::set(kLog2E), V::set(kMagic));
  const V n = V::sub(shifted, V::set(kMagic));
  return V::fma(n, V::set(-kLn2Low), V::fma(n, V::set(-kLn2High), x));
}

template <class V>
static inline V exp(V x) {
  x = V::min(V::set(89.0f), V::max(V::set(-104.0f), x));
  V shifted;
  const V r = reduce_exponent(x, shifted);
  return V::times_power(V::add(exp_minus_one_reduced(r), V::set(1.0f)), shifted);
}

// 2^x for x <= 128, to zero below -150: two thirds of the work of exp.
template <class V>
static inline V exp2(V x) {
  x = V::max(V::set(-160.0f), x);
  const V shifted = V::add(x, V::set(kMagic));
  const V f = V::sub(x, V::sub(shifted, V::set(kMagic)));
  V p = V::set(0x1.5bba0ep-10f);
  p = V::fma(p, f, V::set(0x1.3cea88p-7f));
  p = V::fma(p, f, V::set(0x1.c6b752p-5f));
  p = V::fma(p, f, V::set(0x1.ebf9bcp-3f));
  p = V::fma(p, f, V::set(0x1.62e42ap-1f));
  return V::times_power(V::fma(p, f, V::set(1.0f)), shifted);
}

// To 8 significant bits by Veltkamp's splitting, which gives a nearest number of 8 bits; what is
// too small for pair_product.h becomes zero. |x| is at most 2^100.
template <class V>
static inline V round_bf16(V x) {
  const V c = V::mul(x, V::set(65537.0f));
  const V rounded = V::sub(c, V::sub(c, x));
  return V::select_less(V::abs(x), V::set(kLeastBf16), V::set(0.0f), rounded);
}

template <class V>
static inline V tanh(V x) {
  const V a = V::min(V::set(10.0f), V::abs(x));
  V shifted;
  const V r = reduce_exponent(V::add(a, a), shifted);
  const V power = V::times_power(V::set(1.0f), shifted);
  const V t = V::fma(power, exp_minus_one_reduced(r), V::sub(power, V::set(1.0f)));
  return V::copy_sign(V::div(t, V::add(t, V::set(2.0f))), x);
}

template <class V>
static inline V erf(V x) {
  const V a = V::min(V::set(4.0f), V::abs(x));
  const V s = V::mul(a, a);
  V p = V::set(-0.000576083199f);
  p = V::fma(p, s, V::set(0.00494042272f));
  p = V::fma(p, s, V::set(-0.0267225914f));
  p = V::fma(p, s, V::set(0.112802066f));
  p = V::fma(p, s, V::set(-0.376122534f));
  p = V::fma(p, s, V::set(0.128379047f));
  const V small = V::fma(p, a, a);
  V q = V::set(0.000212921019f);
  q = V::fma(q, a, V::set(-0.00320622604f));
  q = V::fma(q, a, V::set(0.022862114f));
  q = V::fma(q, a, V::set(-0.105218641f));
  q = V::fma(q, a, V::set(-0.63575089f));
  q = V::fma(q, a, V::set(-0.128504768f));
  const V large = V::sub(V::set(1.0f), exp(V::sub(V::mul(q, a), a)));
  return V::copy_sign(V::select_less(a, V::set(0.9375f), small, large), x);
}

template <class V>
static inline V silu(V x) {
  const V e = exp(V::sub(V::set(0.0f), x));
  return V::div(x, V::add(V::set(1.0f), e));
}

template <class V>
static inline V gelu(V x) {
  const V e = erf(V::mul(x, V::set(0.707106781f)));
  return V::mul(V::mul(V::set(0.5f), x), V::add(V::set(1.0f), e));
}

template <class V>
static inline V gelu_tanh(V x) {
  const V cubic = V::fma(V::mul(V::set(0.044715f), x), V::mul(x, x), x);
  const V t = tanh(V::mul(V::set(0.797884561f), cubic));
  return V::mul(V::mul(V::set(0.5f), x), V::add(V::set(1.0f), t));
}

template <class V>
static inline V relu(V x) {
  return V::max(V::set(0.0f), x);
}

template <class V, Activation kActivation>
static inline V activation(V x) {
  if constexpr (kActivation == Activation::kSilu) return silu(x);
  if constexpr (kActivation == Activation::kGelu) return gelu(x);
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::kRelu) return relu(x);
  if constexpr (kActivation == Activation::kRelu2) return V::mul(relu(x), relu(x));
}

}  // namespace vec_math
}  // namespace quern
