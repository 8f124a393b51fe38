// SPDX-License-Identifier: Apache-2.0
// What the first layer of a model reads and makes of a text, for tests that repeat its attention in
// double: heads before RoPE, and what attention gives.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "model/model.h"

namespace quern::test {

// Heads of the first layer, [n, heads * d_head], and its attention's results z.
class HeadRecord final : public LayerTap {
 public:
  bool input(Role role, int /*expert*/, MatrixView<const float> x) override {
    if (role == Role::kO) z = copy(x);
    return true;
  }
  bool heads(MatrixView<const float> a, MatrixView<const float> b,
             MatrixView<const float> c) override {
    q = copy(a);
    k = copy(b);
    v = copy(c);
    return true;
  }
  Matrix<float> q, k, v, z;

 private:
  static Matrix<float> copy(MatrixView<const float> x) {
    Matrix<float> y(x.rows, x.cols);
    for (int64_t i = 0; i < x.rows; ++i) std::copy_n(x.row(i), x.cols, y.row(i));
    return y;
  }
};

// All tokens in one call.
inline HeadRecord record_heads(const Model& model, KvCache cache, std::span<const Token> ids) {
  HeadRecord record;
  Matrix<float> hidden(static_cast<int64_t>(ids.size()), model.desc().d_model);
  const auto tap = [&](int layer) -> LayerTap* { return layer == 0 ? &record : nullptr; };
  EXPECT_TRUE(model.forward(cache, ids, hidden.view(), tap));
  return record;
}

using Vector = std::vector<double>;

inline Vector head_of(const Matrix<float>& x, int64_t row, int64_t head, int64_t d) {
  return {x.row(row) + head * d, x.row(row) + (head + 1) * d};
}

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline void add(double share, const Vector& x, Vector& y) {
  for (size_t i = 0; i < y.size(); ++i) y[i] += share * x[i];
}

inline Vector turned(const RopeDesc& rope, Vector x, int64_t position) {
  const int half = rope.n_dims / 2;
  for (int j = 0; j < half; ++j) {
    const auto at = static_cast<size_t>(j), partner = static_cast<size_t>(j + half);
    const double angle = static_cast<double>(position) * rope.inv_freq[at];
    const double c = rope.magnitude * std::cos(angle), s = rope.magnitude * std::sin(angle);
    const double a = x[at], b = x[partner];
    x[at] = a * c - b * s;
    x[partner] = b * c + a * s;
  }
  return x;
}

// The largest difference between results of attention over caches of halves, relative to the
// largest of them.
inline double relative_error(const Matrix<float>& got, const std::vector<Vector>& expected) {
  double error = 0, most = 0;
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t c = 0; c < got.cols(); ++c) {
      const double x = expected[static_cast<size_t>(i)][static_cast<size_t>(c)];
      error = std::max(error, std::fabs(got(i, c) - x));
      most = std::max(most, std::fabs(x));
    }
  }
  return error / most;
}

}  // namespace quern::test
