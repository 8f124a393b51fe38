// SPDX-License-Identifier: Apache-2.0
// Conjugate gradients on (A^T (I x H) A) x = A^T (I x H) w, preconditioned by what the diagonal of
// the matrix would be if no value stood twice in a row: sum over i, j of slope(i, j)^2 H_jj.
#include "solvers/refit.h"

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kRows = 32;     // of a piece of work
constexpr double kEnough = 1e-3;  // a step that gains less, of what all gained, is the last

// product[n_out, n_in] = (base - A x) H, base empty: A x H.
void times_hessian(MatrixView<const float> base, MatrixView<const float> h, const LinearPart& part,
                   std::span<const float> x, Matrix<float>& product) {
  const int64_t n_in = h.cols;
  parallel_for(product.rows(), kRows, [&](int64_t begin, int64_t end) {
    Matrix<float> a(end - begin, n_in);
    part.decode(x, begin, end - begin, a.data());
    for (int64_t i = begin; i < end && base.data != nullptr; ++i) {
      for (int64_t j = 0; j < n_in; ++j) a(i - begin, j) = base(i, j) - a(i - begin, j);
    }
    kernels().dot_tile(a.data(), n_in, end - begin, h.data, h.stride, n_in, n_in,
                       product.row(begin), n_in);
  });
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace

size_t refit_scratch_bytes(int64_t n_out, int64_t n_in) {
  return static_cast<size_t>(n_out * n_in) * sizeof(float);
}

void refit(MatrixView<const float> w, MatrixView<const float> h, int steps, LinearPart& part) {
  std::vector<float> stored = part.values();
  const size_t n = stored.size();
  Matrix<float> product(w.rows, w.cols);
  std::vector<double> x(stored.begin(), stored.end()), inverse(n), residual(n), z(n), p(n), q(n);
  times_hessian(w, h, part, stored, product);
  part.gather(product.view(), 1, residual);
  std::vector<float> diagonal(static_cast<size_t>(w.cols));
  for (int64_t j = 0; j < w.cols; ++j) diagonal[static_cast<size_t>(j)] = h(j, j);
  part.gather({diagonal.data(), w.rows, w.cols, 0}, 2, inverse);
  for (double& value : inverse) value = value > 0 ? 1 / value : 0;

  std::vector<float> direction(n);
  double slope = 0, gained = 0;
  for (int step = 0; step < steps; ++step) {
    for (size_t i = 0; i < n; ++i) z[i] = inverse[i] * residual[i];
    const double last_slope = slope;
    slope = dot(z, residual);
    for (size_t i = 0; i < n; ++i) {
      p[i] = z[i] + (step > 0 ? slope / last_slope * p[i] : 0);
      direction[i] = static_cast<float>(p[i]);
    }
    times_hessian({}, h, part, direction, product);
    std::fill(q.begin(), q.end(), 0);
    part.gather(product.view(), 1, q);
    const double curvature = dot(p, q);
    if (!(slope > 0) || !(curvature > 0)) break;
    const double length = slope / curvature;
    for (size_t i = 0; i < n; ++i) {
      x[i] += length * p[i];
      residual[i] -= length * q[i];
    }
    gained += length * slope;
    if (length * slope < kEnough * gained) break;
  }
  std::transform(x.begin(), x.end(), stored.begin(),
                 [](double value) { return static_cast<float>(value); });
  part.store(stored);
}

}  // namespace quern
