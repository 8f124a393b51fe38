// SPDX-License-Identifier: Apache-2.0
// The operations of the reference forward: one obvious loop each, in the precision of T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>

#include "base/check.h"
#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern::reference {

template <class T>
T activate(Activation activation, T x) {
  constexpr T kSqrt2OverPi = std::numbers::sqrt2_v<T> * std::numbers::inv_sqrtpi_v<T>;
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return x * (1 + std::erf(x / std::numbers::sqrt2_v<T>)) / 2;
    case Activation::kGeluTanh:
      return x * (1 + std::tanh(kSqrt2OverPi * (x + T(0.044715) * x * x * x))) / 2;
    case Activation::kRelu:
      return std::max(x, T(0));
    case Activation::kRelu2:
      return std::max(x, T(0)) * std::max(x, T(0));
  }
  return x;
}

template <class T>
void soft_cap(double cap, T& x) {
  if (cap != 0) x = T(cap) * std::tanh(x / T(cap));
}

// In place on the n values at x.
template <class T>
void softmax(T* x, int64_t n) {
  const T max = *std::max_element(x, x + n);
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - max);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// Normalises each run of `n` values; `gain` and `bias` are [1, n], bias null if there is none. The
// mean square is taken over `divisor` values, of which those beyond n were cut off; 0: over n.
template <class T>
void normalise(const NormDesc& norm, const Matrix<T>& gain, const Matrix<T>* bias, Matrix<T>& x,
               int64_t divisor = 0) {
  const int64_t n = gain.cols();
  for (T* v = x.data(); v != x.data() + x.rows() * x.cols(); v += n) {
    const T mean = norm.kind == NormKind::kLayer ? std::accumulate(v, v + n, T(0)) / T(n) : T(0);
    T square = 0;
    for (int64_t j = 0; j < n; ++j) square += (v[j] - mean) * (v[j] - mean);
    const T scale = 1 / std::sqrt(square / T(divisor > 0 ? divisor : n) + T(norm.eps));
    for (int64_t j = 0; j < n; ++j) {
      v[j] = (v[j] - mean) * scale * (gain(0, j) + T(norm.gain_offset));
      if (bias != nullptr) v[j] += (*bias)(0, j);
    }
  }
}

template <class T>
void add(const Matrix<T>& x, Matrix<T>& y) {
  for (int64_t i = 0; i < y.rows() * y.cols(); ++i) y.data()[i] += x.data()[i];
}

// y = x W^T (+ b)
template <class T>
Matrix<T> linear(const Matrix<T>& x, const Matrix<T>& w, const Matrix<T>* bias) {
  QUERN_CHECK(x.cols() == w.cols());
  Matrix<T> y(x.rows(), w.rows());
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < w.rows(); ++j) {
      y(i, j) = std::inner_product(x.row(i), x.row(i) + x.cols(), w.row(j), T(0));
      if (bias != nullptr) y(i, j) += (*bias)(0, j);
    }
  }
  return y;
}

}  // namespace quern::reference
