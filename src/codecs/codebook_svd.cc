// SPDX-License-Identifier: Apache-2.0
#include "codecs/codebook_svd.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace quern {
namespace {

constexpr int kSweeps = 30;

// Rotates a (symmetric) so that a(p, q) = 0, and the columns of v along.
void rotate(int64_t p, int64_t q, Matrix<double>& a, Matrix<double>& v) {
  if (a(p, q) == 0) return;
  const double theta = (a(q, q) - a(p, p)) / (2 * a(p, q));
  const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::hypot(theta, 1.0));
  const double c = 1 / std::hypot(t, 1.0), s = t * c;
  const int64_t n = a.rows();
  for (int64_t i = 0; i < n; ++i) {
    const double x = a(i, p), y = a(i, q), vx = v(i, p), vy = v(i, q);
    a(i, p) = c * x - s * y;
    a(i, q) = s * x + c * y;
    v(i, p) = c * vx - s * vy;
    v(i, q) = s * vx + c * vy;
  }
  for (int64_t i = 0; i < n; ++i) {
    const double x = a(p, i), y = a(q, i);
    a(p, i) = c * x - s * y;
    a(q, i) = s * x + c * y;
  }
}

}  // namespace

CodebookFactors codebook_factors(const Matrix<double>& tables, int64_t rank) {
  const int64_t n = tables.rows(), k = tables.cols();
  Matrix<double> gram(k, k), v(k, k);
  for (int64_t p = 0; p < k; ++p) {
    v(p, p) = 1;
    for (int64_t q = 0; q < k; ++q) {
      for (int64_t i = 0; i < n; ++i) gram(p, q) += tables(i, p) * tables(i, q);
    }
  }
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t q = p + 1; q < k; ++q) rotate(p, q, gram, v);
    }
  }
  std::vector<int64_t> order(static_cast<size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return gram(a, a) > gram(b, b); });
  CodebookFactors factors{Matrix<double>(n, rank), Matrix<double>(rank, k)};
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t c = 0; c < k; ++c) {
      const double entry = v(c, order[static_cast<size_t>(r)]);
      factors.basis(r, c) = entry;
      for (int64_t i = 0; i < n; ++i) factors.coefficients(i, r) += tables(i, c) * entry;
    }
  }
  return factors;
}

}  // namespace quern
