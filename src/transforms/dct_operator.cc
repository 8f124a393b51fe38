// SPDX-License-Identifier: Apache-2.0
// The orthonormal DCT-II, for sizes that have no Hadamard matrix:
//     M[k, j] = sqrt((k = 0 ? 1 : 2) / n) cos(pi (j + 1/2) k / n)
// by one complex Fourier transform of n values (Makhoul, IEEE TASSP 28, 1980) that splits off the
// smallest prime factor of its size at a time: n times the sum of n's prime factors operations. In
// double for both types of input. It mixes like a Hadamard matrix but for its largest entries,
// which are sqrt 2 times larger.
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "transforms/operator.h"

namespace quern {
namespace {

using Complex = std::complex<double>;

Complex turn(double share) {  // exp(2 pi i share)
  return {std::cos(2 * std::numbers::pi * share), std::sin(2 * std::numbers::pi * share)};
}

int64_t smallest_factor(int64_t n) {
  for (int64_t p = 2; p * p <= n; ++p) {
    if (n % p == 0) return p;
  }
  return n;
}

class Dct final : public Operator {
 public:
  explicit Dct(int64_t size)
      : n_(size), roots_(static_cast<size_t>(size)), quarter_(roots_.size()) {
    for (int64_t k = 0; k < n_; ++k) {
      const double share = static_cast<double>(k) / static_cast<double>(n_);
      roots_[static_cast<size_t>(k)] = turn(-share);
      quarter_[static_cast<size_t>(k)] = turn(-share / 4) * scale(k);
    }
  }
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return n_; }
  void apply(float* x, int64_t count) const override { forward(x, count, x); }
  void apply(double* x, int64_t count) const override { forward(x, count, x); }
  void apply_to(const float* x, int64_t count, float* y) const override { forward(x, count, y); }
  void apply_inverse(float* x, int64_t count) const override { backward(x, count); }
  void apply_inverse(double* x, int64_t count) const override { backward(x, count); }
  int64_t flops() const override {
    int64_t factors = 0;
    for (int64_t rest = n_; rest > 1;) {
      const int64_t p = smallest_factor(rest);
      factors += p;
      rest /= p;
    }
    return n_ * (8 * factors + 8);
  }
  int64_t bytes() const override { return 2 * n_ * int64_t{sizeof(Complex)}; }
  Json to_json() const override { return {{"op", "dct"}, {"size", n_}}; }

 private:
  double scale(int64_t k) const {
    return std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(n_));
  }

  // v[j] = x[2 j], v[n - 1 - j] = x[2 j + 1]
  int64_t source(int64_t j) const { return j < (n_ + 1) / 2 ? 2 * j : 2 * (n_ - 1 - j) + 1; }

  template <class T>
  void forward(const T* x, int64_t count, T* y) const {
    std::vector<Complex> v(roots_.size()), f(roots_.size());
    for (const T* end = x + count; x != end; x += n_, y += n_) {
      for (int64_t j = 0; j < n_; ++j) v[static_cast<size_t>(j)] = double(x[source(j)]);
      transform(v.data(), 1, n_, f.data());
      for (size_t k = 0; k < f.size(); ++k) y[k] = static_cast<T>((f[k] * quarter_[k]).real());
    }
  }

  // The transpose: x[source(j)] = Re sum_k X_k quarter_k root^(jk).
  template <class T>
  void backward(T* x, int64_t count) const {
    std::vector<Complex> v(roots_.size()), f(roots_.size());
    for (T* end = x + count; x != end; x += n_) {
      for (size_t k = 0; k < v.size(); ++k) v[k] = quarter_[k] * double(x[k]);
      transform(v.data(), 1, n_, f.data());
      for (int64_t j = 0; j < n_; ++j) {
        x[source(j)] = static_cast<T>(f[static_cast<size_t>(j)].real());
      }
    }
  }

  // f[k] = sum_j v[j stride] root^(jk) over n values, root = exp(-2 pi i / n).
  void transform(const Complex* v, int64_t stride, int64_t n, Complex* f) const {
    if (n == 1) {
      f[0] = v[0];
      return;
    }
    const int64_t p = smallest_factor(n), m = n / p;
    for (int64_t r = 0; r < p; ++r) transform(v + r * stride, stride * p, m, f + r * m);
    std::vector<Complex> parts(static_cast<size_t>(p));
    const int64_t step = n_ / n;
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t r = 0; r < p; ++r) {
        parts[static_cast<size_t>(r)] = f[r * m + k] * roots_[static_cast<size_t>(r * k * step)];
      }
      for (int64_t q = 0; q < p; ++q) {
        Complex sum = 0;
        for (int64_t r = 0; r < p; ++r) {
          sum += parts[static_cast<size_t>(r)] * roots_[static_cast<size_t>(r * q % p * (n_ / p))];
        }
        f[q * m + k] = sum;
      }
    }
  }

  int64_t n_;
  std::vector<Complex> roots_;    // exp(-2 pi i k / n)
  std::vector<Complex> quarter_;  // scale_k exp(-pi i k / 2 n)
};

Result<OperatorPtr> read_dct(const Json& json, const FindTensor&) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxDctSize));
  return make_dct(size);
}

}  // namespace

OperatorPtr make_dct(int64_t size) { return std::make_shared<Dct>(size); }

extern const OperatorInfo dct_operator_info;
const OperatorInfo dct_operator_info = {"dct", read_dct};

}  // namespace quern
