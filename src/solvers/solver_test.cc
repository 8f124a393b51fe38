// SPDX-License-Identifier: Apache-2.0
// What every solver must do, and what makes ldlq the solver of its name.
#include "solvers/solver.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "gaussian.h"
#include "solvers/solver_testing.h"

namespace quern {
namespace {

const char* const kSolvers[] = {
    "rtn(int(4, group=64))",
    "ldlq(int(4, group=64))",
    "ldlq(int(3, group=32), order=act)",
    "ldlq(int(2, group=48, clip=search), groups=static)",
    "ldlq(int(3, group=0))",
    "ldlq(billm(64))",
    "ldlq(billm(64, mean=true), order=act)",
    "block_ldlq(int(3, group=32))",
    "block_ldlq(int(2, group=48), descent=3)",
    "block_ldlq(int(3, group=32), order=act, descent=1)",
    "block_ldlq(e8p)",
    "block_ldlq(e8p(3), order=act)",
    "block_ldlq(e8p(4), descent=2)",
    "block_ldlq(pvq(2.5), descent=1)",
    "block_ldlq(pvq(3, dim=16), order=act)",
    "ldlq(trellis(2.5, survivors=16, rows=64))",
    "block_ldlq(additive(2, 5), descent=1)",
    "descent(rtn(int(3, group=32)))",
    "descent(block_ldlq(e8p), sweeps=1)",
    "em(rtn(additive(1, 6)), rounds=2)",
    "em(additive(3, 4, points=int8), sweeps=2)",
    "em(codebook(2, rows=5), rounds=2)",
    "clip(int(3, group=32, sym=false))",
};

TEST(Solvers, ReportedLossIsTheQuadraticForm) {
  const Matrix<float> w = gaussian(9, 130, 1);
  const Matrix<double> h = hessian(130, 400, 2);
  for (const char* text : kSolvers) {
    const Solved solved = solve(text, w, h.view());
    const double expected = loss(w, solved.w_hat, h.view());
    // Float products of 130 terms, summed in double.
    EXPECT_NEAR(solved.report.loss, expected, 1e-4 * expected) << text;
    EXPECT_GT(solved.report.energy, solved.report.loss) << text;
  }
}

TEST(Solvers, FeedbackEqualsRoundingAtIdentity) {
  const Matrix<float> w = gaussian(17, 96, 3);
  Matrix<double> identity(96, 96);
  for (int64_t i = 0; i < 96; ++i) identity(i, i) = 1;
  const auto rtn = solve("rtn(int(3, group=32))", w, {});
  for (const char* text :
       {"ldlq(int(3, group=32))", "ldlq(int(3, group=32), order=act)",
        "ldlq(int(3, group=32), groups=static)", "block_ldlq(int(3, group=32), descent=2)"}) {
    EXPECT_EQ(solve(text, w, identity.view()).w_hat, rtn.w_hat) << text;
  }
  for (const char* codec : {"e8p", "e8p(3)", "pvq(3)"}) {
    EXPECT_EQ(solve(fmt::format("block_ldlq({})", codec), w, identity.view()).w_hat,
              solve(fmt::format("rtn({})", codec), w, {}).w_hat)
        << codec;
  }
  for (const char* codec : {"ternary(32)", "binary(scale=vectors)", "billm(64)", "dual(32)"}) {
    EXPECT_EQ(solve(fmt::format("ldlq({})", codec), w, identity.view()).w_hat,
              solve(fmt::format("rtn({})", codec), w, {}).w_hat)
        << codec;
  }
}

TEST(Solvers, FeedbackBeatsRoundingOnCorrelatedInputs) {
  const Matrix<float> w = gaussian(32, 128, 4);
  const Matrix<double> h = hessian(128, 1000, 5);
  for (const char* codec : {"int(2, group=64)", "int(3, group=64)", "int(4, group=64)"}) {
    const double rtn = solve(fmt::format("rtn({})", codec), w, h.view()).report.loss;
    const double ldlq = solve(fmt::format("ldlq({})", codec), w, h.view()).report.loss;
    const double act = solve(fmt::format("ldlq({}, order=act)", codec), w, h.view()).report.loss;
    EXPECT_LT(ldlq, 0.7 * rtn) << codec;
    EXPECT_LT(act, 0.7 * rtn) << codec;
  }
}

// BiLLM's order of its parts: sign, two magnitudes, salient columns, saliency by the Hessian.
TEST(Ldlq, EveryPartOfBillmPays) {
  const Matrix<float> w = gaussian(64, 256, 20);
  const Matrix<double> h = hessian(256, 2000, 21);
  double last = HUGE_VAL;
  for (const char* codec :
       {"binary", "billm(salient=0, metric=magnitude)", "billm(metric=magnitude)", "billm"}) {
    const double now = solve(fmt::format("ldlq({})", codec), w, h.view()).report.loss;
    EXPECT_LT(now, last) << codec;
    last = now;
  }
}

// A codec that decides late gets the same feedback as one that decides at once.
TEST(Ldlq, FeedsErrorsBackToACodecThatDecidesLate) {
  const Matrix<float> w = gaussian(128, 160, 18);
  const Matrix<double> h = hessian(160, 1000, 19);
  for (const char* codec : {"trellis(2, survivors=32)", "trellis(3, survivors=32, rows=64)"}) {
    const double rtn = solve(fmt::format("rtn({})", codec), w, h.view()).report.loss;
    const Solved fed = solve(fmt::format("ldlq({})", codec), w, h.view());
    EXPECT_LT(fed.report.loss, 0.6 * rtn) << codec;
    EXPECT_NEAR(fed.report.loss, loss(w, fed.w_hat, h.view()), 1e-4 * fed.report.loss) << codec;
  }
  EXPECT_FALSE(make_solver(*spec::parse_call("ldlq(trellis(2), order=act)")));
}

// GPTQ as published: upper Cholesky factor U of the inverse, in double. Columns are coded
// block_cols() at a time, and what later columns take over is err U_BB^-1 U_B., solved exactly.
// `codes` holds what fit_matrix chose.
Matrix<float> gptq(const Matrix<float>& w, const Matrix<double>& h, double damping,
                   const Codec& codec, CodedMatrix codes) {
  const int64_t n = w.cols();
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += h(i, i) / static_cast<double>(n);
  // Inverse by Gauss-Jordan, then U with U^T U = H^-1 by the textbook recursion.
  Matrix<double> a = h, inverse(n, n), u(n, n);
  for (int64_t i = 0; i < n; ++i) {
    a(i, i) += damping * mean;
    inverse(i, i) = 1;
  }
  for (int64_t p = 0; p < n; ++p) {
    const double pivot = a(p, p);
    for (int64_t j = 0; j < n; ++j) {
      a(p, j) /= pivot;
      inverse(p, j) /= pivot;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double factor = a(i, p);
      for (int64_t j = 0; j < n; ++j) {
        a(i, j) -= factor * a(p, j);
        inverse(i, j) -= factor * inverse(p, j);
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = inverse(i, j);
      for (int64_t k = 0; k < i; ++k) sum -= u(k, i) * u(k, j);
      u(i, j) = j == i ? std::sqrt(sum) : sum / u(i, i);
    }
  }
  Matrix<float> current = w, w_hat(w.rows(), n);
  Matrix<double> exact(w.rows(), n);
  for (int64_t i = 0; i < w.rows() * n; ++i) exact.data()[i] = w.data()[i];
  const int64_t group = codec.group_cols(n);
  for (int64_t j = 0, end = 0; j < n; j = end) {
    end = std::min(j + codec.block_cols(), n);
    for (int64_t i = 0; i < w.rows() * n; ++i) {
      current.data()[i] = static_cast<float>(exact.data()[i]);
    }
    if (j % group == 0) {
      codec.fit(current.view().col_range(j, std::min(group, n - j)), {}, 0, j,
                codes.mutable_view());
    }
    codec.encode(current.view().col_range(j, end - j), 0, j, codes.mutable_view(),
                 w_hat.view().col_range(j, end - j));
    for (int64_t i = 0; i < w.rows(); ++i) {
      for (int64_t p = j; p < end; ++p) {  // forward substitution, column by column
        const double e = (exact(i, p) - w_hat(i, p)) / u(p, p);
        for (int64_t c = p; c < n; ++c) exact(i, c) -= e * u(p, c);
      }
    }
  }
  return w_hat;
}

// Values in which the solver's and GPTQ's W_hat differ.
int differences_from_gptq(const std::string& solver, const char* codec, const Matrix<float>& w,
                          const Matrix<double>& h) {
  const Solved solved = solve(fmt::format("{}({})", solver, codec), w, h.view());
  const Matrix<float> expected = gptq(w, h, 0.01, **make_codec(codec), solved.codes);
  int different = 0;
  for (int64_t i = 0; i < w.rows() * w.cols(); ++i) {
    different += expected.data()[i] != solved.w_hat.data()[i] ? 1 : 0;
  }
  return different;
}

// Float feedback may round a tie the other way; after one, that row goes its own way.
TEST(Ldlq, EqualsGptqCodeForCode) {
  const Matrix<float> w = gaussian(12, 100, 6);
  const Matrix<double> h = hessian(100, 600, 7);
  for (const char* codec : {"int(4, group=32)", "int(3, group=0)", "int(3, group=100)",
                            "int(4, group=80, sym=false)"}) {
    EXPECT_LE(differences_from_gptq("ldlq", codec, w, h), 12) << codec;
  }
}

TEST(BlockLdlq, EqualsGptqWithTheExactSolveOfABlock) {
  const Matrix<double> h = hessian(100, 600, 7);
  for (const char* codec :
       {"e8p", "e8p(3)", "e8p(4)", "qtip(3, state_bits=9)", "int(3, group=100)"}) {
    EXPECT_LE(differences_from_gptq("block_ldlq", codec, gaussian(12, 100, 6), h), 16) << codec;
  }
}

// GPTQ takes the nearest point; codecs that heed the metric of a block do better.
TEST(BlockLdlq, TheMetricOfABlockLowersTheLoss) {
  const Matrix<float> w = gaussian(64, 192, 32);
  const Matrix<double> h = hessian(192, 1000, 33);
  const std::pair<const char*, double> rows[] = {{"pvq(2)", 0.25},
                                                 {"pvq(3.25, dim=16)", 0.3},
                                                 {"codebook(2, rows=64, weighted=false)", 0.65},
                                                 {"codebook(2, dim=4, weighted=false)", 0.3}};
  for (const auto& [codec, bound] : rows) {
    const Solved heeded = solve(fmt::format("block_ldlq({})", codec), w, h.view());
    const Matrix<float> plain = gptq(w, h, 0.01, **make_codec(codec), heeded.codes);
    EXPECT_LT(heeded.report.loss / loss(w, plain, h.view()), bound) << codec;
  }
}

TEST(BlockLdlq, EqualsLdlqForCodecsOfSingleColumns) {
  const Matrix<float> w = gaussian(37, 150, 18);
  const Matrix<double> h = hessian(150, 600, 19);
  for (const char* text : {"int(4, group=32)", "int(3, group=0), order=act",
                           "int(2, group=48), groups=static", "int(3, group=150)"}) {
    EXPECT_EQ(solve(fmt::format("block_ldlq({})", text), w, h.view()).w_hat,
              solve(fmt::format("ldlq({})", text), w, h.view()).w_hat)
        << text;
  }
}

TEST(BlockLdlq, BeatsRoundingOnCorrelatedInputs) {
  const Matrix<float> w = gaussian(32, 130, 4);
  const Matrix<double> h = hessian(130, 1000, 5);
  for (const char* codec : {"e8p", "e8p(3)", "e8p(4)", "pvq(3, dim=8)"}) {
    const double rtn = solve(fmt::format("rtn({})", codec), w, h.view()).report.loss;
    const double block = solve(fmt::format("block_ldlq({})", codec), w, h.view()).report.loss;
    const double act =
        solve(fmt::format("block_ldlq({}, order=act)", codec), w, h.view()).report.loss;
    EXPECT_LT(block, 0.8 * rtn) << codec;
    EXPECT_LT(act, 0.8 * rtn) << codec;
  }
}

TEST(DescentSolver, OnlyLowersTheLossOfAnySolver) {
  const Matrix<float> w = gaussian(32, 96, 41);
  const Matrix<double> h = hessian(96, 400, 42);
  for (const char* text : {"rtn(int(3, group=32))", "ldlq(int(3, group=32))", "block_ldlq(e8p)"}) {
    const double before = solve(text, w, h.view()).report.loss;
    double last = before;
    for (const int sweeps : {1, 3}) {
      const double loss =
          solve(fmt::format("descent({}, sweeps={})", text, sweeps), w, h.view()).report.loss;
      EXPECT_LT(loss, last * (sweeps == 1 ? 1.0 : 1.0000001)) << text;
      last = loss;
    }
    EXPECT_LT(last, 0.99 * before) << text;
  }
  EXPECT_FALSE(make_solver(*spec::parse_call("descent(ldlq(trellis(2)))")));
}

TEST(BlockLdlq, DescentOnlyLowersTheLoss) {
  const Matrix<float> w = gaussian(40, 130, 20);
  const Matrix<double> h = hessian(130, 600, 21);
  const Matrix<double> low_rank = hessian(130, 20, 22);
  for (const char* text :
       {"int(2, group=0)", "int(3, group=32), order=act", "e8p", "e8p(3), order=act",
        "additive(2, 5)", "qtip(2, rows=true)", "outliers(e8p, percent=2)"}) {
    for (const Matrix<double>* inputs : {&h, &low_rank}) {
      double last = solve(fmt::format("block_ldlq({})", text), w, inputs->view()).report.loss;
      for (const int sweeps : {1, 2, 10}) {
        const double now =
            solve(fmt::format("block_ldlq({}, descent={})", text, sweeps), w, inputs->view())
                .report.loss;
        EXPECT_LE(now, last * (sweeps == 1 ? 0.99 : 1)) << text << ", " << sweeps;
        last = now;
      }
    }
  }
}

TEST(Ldlq, ActOrderDoesNotDependOnTheOrderOfInputs) {
  const int64_t n = 64;
  const Matrix<float> w = gaussian(8, n, 8);
  const Matrix<double> h = hessian(n, 300, 9);
  Matrix<float> w_reversed(8, n);
  Matrix<double> h_reversed(n, n);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < 8; ++i) w_reversed(i, j) = w(i, n - 1 - j);
    for (int64_t i = 0; i < n; ++i) h_reversed(i, j) = h(n - 1 - i, n - 1 - j);
  }
  const Solved a = solve("ldlq(int(3, group=0), order=act)", w, h.view());
  const Solved b = solve("ldlq(int(3, group=0), order=act)", w_reversed, h_reversed.view());
  int different = 0;
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t j = 0; j < n; ++j) different += a.w_hat(i, j) != b.w_hat(i, n - 1 - j) ? 1 : 0;
  }
  EXPECT_LE(different, 4);
}

TEST(Solvers, SurviveSingularAndEmptyHessians) {
  const Matrix<float> w = gaussian(6, 64, 10);
  const Matrix<double> low_rank = hessian(64, 5, 11);
  Matrix<double> zero(64, 64), dead = hessian(64, 300, 12);
  for (int64_t j = 0; j < 64; ++j) dead(3, j) = dead(j, 3) = 0;
  for (const char* text : kSolvers) {
    for (const Matrix<double>* h :
         std::initializer_list<const Matrix<double>*>{&low_rank, &zero, &dead}) {
      const Solved solved = solve(text, w, h->view());
      for (int64_t i = 0; i < 6 * 64; ++i) ASSERT_TRUE(std::isfinite(solved.w_hat.data()[i]));
    }
    solve(text, w, {});
  }
  const Solved plain = solve("ldlq(int(4, group=64))", w, zero.view());
  EXPECT_FALSE(plain.report.fallback.empty()) << "never silent";
  EXPECT_EQ(plain.w_hat, solve("rtn(int(4, group=64))", w, {}).w_hat);
}

TEST(Solvers, MatricesNarrowerThanABlockAreCoded) {
  for (const int64_t n : {1, 3, 7, 9, 20, 33}) {
    const Matrix<float> w = gaussian(5, n, 23);
    const Matrix<double> h = hessian(n, 200, 24);
    for (const char* text : kSolvers) {
      const Solved solved = solve(text, w, h.view());
      EXPECT_NEAR(solved.report.loss, loss(w, solved.w_hat, h.view()), 1e-4 * solved.report.energy)
          << text << ", " << n;
      EXPECT_LT(solved.report.loss, solved.report.energy) << text << ", " << n;
    }
  }
}

TEST(Ldlq, RaisedDampingIsReportedAndNaNIsAnError) {
  const Matrix<float> w = gaussian(3, 32, 13);
  Matrix<double> indefinite = hessian(32, 100, 14);
  for (int64_t i = 0; i < 32; ++i) indefinite(i, (i + 1) % 32) = indefinite((i + 1) % 32, i) = 50;
  EXPECT_GT(solve("ldlq(int(4, group=32))", w, indefinite.view()).report.damping_raises, 0);
  Matrix<double> broken = hessian(32, 100, 15);
  broken(4, 7) = std::numeric_limits<double>::quiet_NaN();
  const auto solver = *make_solver(*spec::parse_call("ldlq(int(4, group=32))"));
  CodedMatrix codes = *CodedMatrix::create(solver->codec(), 3, 32);
  EXPECT_FALSE(solver->solve({w.view(), broken.view()}, codes));
}

TEST(Solvers, SameBytesForAnyThreadCount) {
  const Matrix<float> w = gaussian(150, 200, 16);
  const Matrix<double> h = hessian(200, 300, 17);
  for (const char* text : kSolvers) {
    set_thread_count(1);
    const Solved one = solve(text, w, h.view());
    set_thread_count(3);
    const Solved three = solve(text, w, h.view());
    EXPECT_EQ(one.w_hat, three.w_hat) << text;
    EXPECT_EQ(one.report.loss, three.report.loss) << text;
  }
  set_thread_count(0);
}

// Nothing is corrected before the first group, so that fitting it when it is due is fitting it
// beforehand, importance of columns included.
TEST(Solvers, TheFirstGroupIsToldOfImportanceToo) {
  const Matrix<float> w = gaussian(16, 64, 18);
  const Matrix<double> h = hessian(64, 200, 19);
  for (const char* solver : {"ldlq", "block_ldlq"}) {
    const std::string call = std::string(solver) + "(codebook(2, dim=1, cols=0)";
    EXPECT_EQ(solve(call + ", groups=dynamic)", w, h.view()).w_hat,
              solve(call + ", groups=static)", w, h.view()).w_hat);
    EXPECT_FALSE(
        solve(call + ")", w, h.view()).w_hat ==
        solve(std::string(solver) + "(codebook(2, dim=1, cols=0, weighted=false))", w, h.view())
            .w_hat);
  }
}

TEST(Solvers, WrongCallsAreRefusedWithTheChoices) {
  const auto unknown = make_solver(*spec::parse_call("gptq(int(4))"));
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("ldlq"), std::string::npos);
  EXPECT_FALSE(make_solver(*spec::parse_call("ldlq(int(4), order=act, groups=dynamic)")));
  EXPECT_FALSE(make_solver(*spec::parse_call("rtn(float(4))")));
  EXPECT_FALSE(make_solver(*spec::parse_call("em(int(4))"))) << "nothing to refit";
  EXPECT_FALSE(make_solver(*spec::parse_call("em(nothing)")));
}

}  // namespace
}  // namespace quern
