// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "gaussian.h"
#include "solvers/solver.h"

namespace quern {
namespace {

// Codecs that choose side info by the importance of columns, cvxq the most.
TEST(Rtn, WeighsColumnsByTheirInputs) {
  Random random(9);
  const int64_t n = 48;
  const auto size = [](int64_t j) { return std::exp2(static_cast<double>(j % 5)); };
  Matrix<double> h(n, n);
  for (int t = 0; t < 400; ++t) {
    std::vector<double> x(static_cast<size_t>(n));
    double shared = random.gaussian();
    for (double& value : x) value = shared = 0.9 * shared + 0.4 * random.gaussian();
    for (size_t j = 0; j < x.size(); ++j) x[j] *= size(static_cast<int64_t>(j));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        h(i, j) += x[static_cast<size_t>(i)] * x[static_cast<size_t>(j)] / 400;
      }
    }
  }
  const Matrix<float> w = gaussian(64, n, 10);
  const auto loss = [&](const char* text) {
    const auto solver = *make_solver(*spec::parse_call(text));
    CodedMatrix codes = *CodedMatrix::create(solver->codec(), w.rows(), w.cols());
    const auto report = solver->solve({w.view(), h.view()}, codes);
    EXPECT_TRUE(report);
    const double of_codes = coded_loss({w.view(), h.view()}, solver->codec(), codes);
    EXPECT_NEAR(report->loss, of_codes, 1e-3 * of_codes);
    return of_codes;
  };
  const double plain = loss("rtn(cvxq(2))"), weighed = loss("rtn(cvxq(2), weigh=inputs)");
  EXPECT_LT(weighed, 0.7 * plain);
  EXPECT_NEAR(loss("rtn(int(2, group=16), weigh=inputs)"), loss("rtn(int(2, group=16))"), 0);
  EXPECT_LT(loss("ldlq(cvxq(2))"), 0.7 * weighed);
}

}  // namespace
}  // namespace quern
