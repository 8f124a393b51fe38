// SPDX-License-Identifier: Apache-2.0
// What the tests of solvers share: inputs that correlate, a matrix solved by text, the loss.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/random.h"
#include "gaussian.h"
#include "solvers/solver.h"

namespace quern {

// X^T X / N of correlated inputs whose channels differ in size by up to a factor of 30.
inline Matrix<double> hessian(int64_t n, int64_t n_tokens, uint64_t seed) {
  Random random(seed);
  Matrix<double> x(n_tokens, n);
  for (int64_t t = 0; t < n_tokens; ++t) {
    double shared = random.gaussian();
    for (int64_t j = 0; j < n; ++j) {
      shared = 0.9 * shared + 0.4 * random.gaussian();
      x(t, j) = shared * std::pow(30.0, static_cast<double>(j % 7) / 6.0);
    }
  }
  Matrix<double> h(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < n_tokens; ++t) sum += x(t, i) * x(t, j);
      h(i, j) = sum / static_cast<double>(n_tokens);
    }
  }
  return h;
}

struct Solved {
  Matrix<float> w_hat;
  SolveReport report;
  CodedMatrix codes;
};

inline Solved solve(const std::string& text, const Matrix<float>& w, MatrixView<const double> h) {
  const auto call = spec::parse_call(text);
  EXPECT_TRUE(call);
  const auto solver = make_solver(*call);
  EXPECT_TRUE(solver) << (solver ? "" : solver.error().message);
  CodedMatrix codes = *CodedMatrix::create((*solver)->codec(), w.rows(), w.cols());
  auto report = (*solver)->solve({w.view(), h}, codes);
  EXPECT_TRUE(report) << (report ? "" : report.error().message);
  Solved solved{Matrix<float>(w.rows(), w.cols()), report ? *report : SolveReport(), codes};
  (*solver)->codec().decode(codes.view(), 0, w.rows(), solved.w_hat.data());
  return solved;
}

inline double loss(const Matrix<float>& w, const Matrix<float>& w_hat, MatrixView<const double> h) {
  double sum = 0;
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t i = 0; i < w.cols(); ++i) {
      for (int64_t j = 0; j < w.cols(); ++j) {
        sum += (static_cast<double>(w(r, i)) - w_hat(r, i)) * h(i, j) *
               (static_cast<double>(w(r, j)) - w_hat(r, j));
      }
    }
  }
  return sum;
}

}  // namespace quern
