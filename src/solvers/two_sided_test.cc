// SPDX-License-Identifier: Apache-2.0
// Feedback over rows as well as columns, where outputs have a Hessian (YAQA).
#include <gtest/gtest.h>

#include <cmath>

#include "base/parallel.h"
#include "codecs/test_matrices.h"
#include "linalg/cholesky.h"
#include "solvers/solver.h"

namespace quern {
namespace {

constexpr int64_t kStrip = 16;  // rows without feedback between them, for codecs of single rows

// Neighbours correlate by rho; sizes differ.
Matrix<double> correlated(int64_t n, double rho) {
  Matrix<double> h(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      h(i, j) = std::pow(rho, std::abs(i - j)) * (1 + static_cast<double>(i % 5)) *
                (1 + static_cast<double>(j % 5));
    }
  }
  return h;
}

// Any two correlate alike, as far apart as they may be.
Matrix<double> coupled(int64_t n) {
  Matrix<double> h(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j)
      h(i, j) = (i == j ? 1 : 0.7) * static_cast<double>((1 + i % 3) * (1 + j % 3));
  }
  return h;
}

Matrix<double> identity(int64_t n) {
  Matrix<double> h(n, n);
  for (int64_t i = 0; i < n; ++i) h(i, i) = 1;
  return h;
}

Matrix<float> solve(const std::string& text, const SolveInput& input) {
  const auto solver = make_solver(*spec::parse_call(text));
  EXPECT_TRUE(solver) << text;
  CodedMatrix codes = *CodedMatrix::create((*solver)->codec(), input.w.rows, input.w.cols);
  EXPECT_TRUE((*solver)->solve(input, codes)) << text;
  return decode_matrix((*solver)->codec(), codes);
}

// tr(H_O E H E^T)
double loss(const Matrix<double>& h_out, const Matrix<double>& h_in, const Matrix<float>& w,
            const Matrix<float>& w_hat) {
  const int64_t m = w.rows(), n = w.cols();
  const auto e = [&](int64_t i, int64_t j) { return static_cast<double>(w(i, j)) - w_hat(i, j); };
  Matrix<double> eh(m, n);
  double sum = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t k = 0; k < n; ++k) eh(i, j) += e(i, k) * h_in(k, j);
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < m; ++k) {
      for (int64_t j = 0; j < n; ++j) sum += h_out(i, k) * eh(k, j) * e(i, j);
    }
  }
  return sum;
}

// M of H = M D M^T over blocks, with identities for diagonal blocks, less the identity.
Matrix<double> strict_factor(Matrix<double> h, int64_t block) {
  EXPECT_TRUE(reverse_cholesky(h.view()));
  const int64_t n = h.rows();
  Matrix<double> l(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t b = j / block * block;
      if (i >= b) continue;
      l(i, j) = h(i, j);
      for (int64_t a = b; a < j; ++a) l(i, j) -= l(i, a) * h(a, j);
    }
  }
  return l;
}

const char* const kSolvers[] = {
    "ldlq(int(3, group=0))",
    "ldlq(int(3, group=16), order=act)",
    "block_ldlq(e8p)",
    "block_ldlq(int(3, group=16), descent=1)",
    "ldlq(trellis(2.5, survivors=16, rows=64))",
};

TEST(TwoSided, IsLdlqWhereOutputsDoNotCorrelate) {
  const Matrix<float> w = gaussian_matrix(150, 48, 1);
  const Matrix<double> h_in = correlated(48, 0.8), h_out = identity(150);
  for (const char* text : kSolvers) {
    EXPECT_EQ(solve(text, {w.view(), h_in.view(), h_out.view()}),
              solve(text, {w.view(), h_in.view()}))
        << text;
  }
}

TEST(TwoSided, LowersTheLossItIsFor) {
  const Matrix<float> w = gaussian_matrix(256, 48, 2);
  const Matrix<double> h_in = correlated(48, 0.8), h_out = coupled(256);
  for (const char* text : kSolvers) {
    const double one = loss(h_out, h_in, w, solve(text, {w.view(), h_in.view()}));
    const double two = loss(h_out, h_in, w, solve(text, {w.view(), h_in.view(), h_out.view()}));
    EXPECT_LT(two, 0.6 * one) << text;
  }
}

// Every weight is rounded to the nearest of its row's grid from W + B^T E + E A + B^T E A.
TEST(TwoSided, RoundsTheTargetOfThePaper) {
  constexpr int64_t kRows = 3 * kStrip, kCols = 24;
  const Matrix<float> w = gaussian_matrix(kRows, kCols, 3);
  const Matrix<double> h_in = correlated(kCols, 0.5), h_out = correlated(kRows, 0.5);
  const Matrix<float> w_hat = solve("ldlq(int(8, group=0), groups=static, damping=0)",
                                    {w.view(), h_in.view(), h_out.view()});
  const Matrix<double> a = strict_factor(h_in, 1), b = strict_factor(h_out, kStrip);
  Matrix<double> lacking(kRows, kCols);  // E + B^T E
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      lacking(i, j) = static_cast<double>(w(i, j)) - w_hat(i, j);
      for (int64_t k = 0; k < i; ++k) {
        lacking(i, j) += b(k, i) * (static_cast<double>(w(k, j)) - w_hat(k, j));
      }
    }
  }
  int moved = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    double largest = 0;
    for (int64_t j = 0; j < kCols; ++j) largest = std::max(largest, std::abs(double{w(i, j)}));
    const double half_step = largest / 127 / 2;
    for (int64_t j = 0; j < kCols; ++j) {
      double rounding = lacking(i, j);  // target - w_hat
      for (int64_t k = 0; k < j; ++k) rounding += lacking(i, k) * a(k, j);
      const bool is_end = std::abs(w_hat(i, j)) > largest - half_step;
      if (!is_end) {
        EXPECT_LE(std::abs(rounding), half_step * 1.02) << i << " " << j;
      }
      moved += std::abs(double{w(i, j)} - w_hat(i, j)) > half_step * 1.02 ? 1 : 0;
    }
  }
  EXPECT_GT(moved, kRows * kCols / 20);  // plain rounding would not do
}

TEST(TwoSided, SameCodesForAnyThreadCount) {
  const Matrix<float> w = gaussian_matrix(100, 40, 4);
  const Matrix<double> h_in = correlated(40, 0.8), h_out = correlated(100, 0.9);
  for (const char* text : kSolvers) {
    set_thread_count(1);
    const Matrix<float> alone = solve(text, {w.view(), h_in.view(), h_out.view()});
    set_thread_count(3);
    EXPECT_EQ(solve(text, {w.view(), h_in.view(), h_out.view()}), alone) << text;
    set_thread_count(0);
  }
}

TEST(TwoSided, AnOutputHessianWithoutFactorIsAnError) {
  const Matrix<float> w = gaussian_matrix(20, 16, 5);
  const Matrix<double> h_in = identity(16);
  Matrix<double> h_out = identity(20);
  h_out(3, 3) = std::nan("");
  const auto solver = make_solver(*spec::parse_call("ldlq(int(4))"));
  CodedMatrix codes = *CodedMatrix::create((*solver)->codec(), 20, 16);
  const auto report = (*solver)->solve({w.view(), h_in.view(), h_out.view()}, codes);
  EXPECT_FALSE(report);
}

}  // namespace
}  // namespace quern
