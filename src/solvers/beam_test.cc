// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "gaussian.h"
#include "solvers/solver.h"

namespace quern {
namespace {

// A^T A / N for Gaussian A whose neighbours are correlated.
Matrix<double> hessian(int64_t n, uint64_t seed) {
  const int64_t samples = 3 * n;
  Matrix<float> a = gaussian(samples, n, seed);
  Matrix<double> h(n, n);
  for (int64_t t = 0; t < samples; ++t) {
    for (int64_t j = 1; j < n; ++j) a(t, j) += 0.9f * a(t, j - 1);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        h(i, j) += static_cast<double>(a(t, i)) * a(t, j) / static_cast<double>(samples);
      }
    }
  }
  return h;
}

struct Solved {
  CodedMatrix codes;
  SolveReport report;
};

Solved solve(const std::string& text, const Matrix<float>& w, const Matrix<double>& h) {
  const auto solver = make_solver(*spec::parse_call(text));
  EXPECT_TRUE(solver) << text;
  Solved solved{*CodedMatrix::create((*solver)->codec(), w.rows(), w.cols()), {}};
  const SolveInput input{w.view(), h.view()};
  solved.report = *(*solver)->solve(input, solved.codes);
  EXPECT_NEAR(coded_loss(input, (*solver)->codec(), solved.codes), solved.report.loss,
              1e-4 * solved.report.loss)
      << text;
  return solved;
}

TEST(Beam, OfWidthOneIsLdlqCodeForCode) {
  const Matrix<float> w = gaussian(45, 200, 1);
  const Matrix<double> h = hessian(200, 2);
  for (const char* rest :
       {"int(3, group=48)", "int(4, group=0, sym=false)", "int(2, group=32), order=act",
        "float(e2m1, group=32)", "table(nf, 3, sides=2), groups=static"}) {
    const Solved ldlq = solve(fmt::format("ldlq({})", rest), w, h);
    std::string text = fmt::format("beam({}, width=1)", rest);
    const Solved beam = solve(text, w, h);
    EXPECT_EQ(beam.report.loss, ldlq.report.loss) << rest;
    for (size_t p = 0; p < ldlq.codes.specs().size(); ++p) {
      EXPECT_TRUE(std::ranges::equal(beam.codes.plane(p), ldlq.codes.plane(p))) << rest;
    }
  }
}

TEST(Beam, WiderLosesLess) {
  const Matrix<float> w = gaussian(64, 192, 3);
  const Matrix<double> h = hessian(192, 4);
  for (const char* codec : {"int(3, group=48)", "int(2, group=32, clip=search)",
                            "float(e2m1, group=32)", "table(nf, 3, sides=2)"}) {
    double last = solve(fmt::format("ldlq({})", codec), w, h).report.loss;
    for (const int width : {2, 4, 16}) {
      const double loss = solve(fmt::format("beam({}, width={})", codec, width), w, h).report.loss;
      EXPECT_LT(loss, 0.98 * last) << codec << ", width " << width;
      last = loss;
    }
  }
}

// A width of all codings tries them all.
TEST(Beam, FindsTheBestCodingOfAShortRow) {
  const Matrix<float> w = gaussian(40, 3, 5);
  const Matrix<double> h = hessian(3, 6);
  const auto codec = *make_codec("int(2, group=0)");
  const Solved wide = solve("beam(int(2, group=0), width=64, damping=0)", w, h);
  const Solved narrow = solve("beam(int(2, group=0), width=1, damping=0)", w, h);
  double least = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    std::vector<float> values;
    codec->levels(wide.codes.view(), i, 0, values);
    ASSERT_EQ(values.size(), 4u);
    double best = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < 64; ++c) {
      const double e[3] = {w(i, 0) - values[c % 4], w(i, 1) - values[c / 4 % 4],
                           w(i, 2) - values[c / 16]};
      double loss = 0;
      for (int64_t a = 0; a < 3; ++a) {
        for (int64_t b = 0; b < 3; ++b) loss += e[a] * h(a, b) * e[b];
      }
      best = std::min(best, loss);
    }
    least += best;
  }
  EXPECT_NEAR(wide.report.loss, least, 1e-5 * least);
  EXPECT_LT(wide.report.loss, 0.95 * narrow.report.loss);
}

TEST(Beam, WantsACodecThatListsItsValues) {
  for (const char* text : {"beam(e8p)", "beam(trellis(2))", "beam(int(3), width=0)",
                           "beam(int(3), order=act, groups=dynamic)"}) {
    EXPECT_FALSE(make_solver(*spec::parse_call(text))) << text;
  }
}

}  // namespace
}  // namespace quern
