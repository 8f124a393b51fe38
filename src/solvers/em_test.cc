// SPDX-License-Identifier: Apache-2.0
// em and the refitting of what a codec's weights are linear in.
#include <gtest/gtest.h>

#include "gaussian.h"
#include "solvers/refit.h"
#include "solvers/solver_testing.h"

namespace quern {
namespace {

// What a step that is taken back restores are all bytes: the report's loss is that of the codes.
TEST(Em, TheLossNeverRisesAndFallsByMuch) {
  const Matrix<float> w = gaussian(48, 128, 25);
  const Matrix<double> h = hessian(128, 600, 26), low_rank = hessian(128, 20, 27);
  for (const char* inner :
       {"rtn(additive(2, 5))", "block_ldlq(additive(1, 6, points=int8))",
        "ldlq(codebook(2, dim=1, rows=8))", "block_ldlq(codebook(2, rows=16))"}) {
    for (const Matrix<double>* inputs : {&h, &low_rank}) {
      const double before = solve(inner, w, inputs->view()).report.loss;
      double last = before;
      for (const int rounds : {1, 2, 4}) {
        const Solved solved =
            solve(fmt::format("em({}, rounds={}, tolerance=0)", inner, rounds), w, inputs->view());
        EXPECT_LE(solved.report.loss, last) << inner << ", " << rounds;
        EXPECT_NEAR(solved.report.loss, loss(w, solved.w_hat, inputs->view()), 1e-4 * before);
        last = solved.report.loss;
      }
      EXPECT_LT(last, 0.8 * before) << inner;
    }
  }
}

// Each part alone lowers the loss, to where its slope is nearly zero.
TEST(Refit, FindsTheBestValuesOfAPart) {
  const Matrix<float> w = gaussian(40, 100, 28);
  const Matrix<double> h = hessian(100, 400, 29);
  Matrix<float> h_float(100, 100);
  std::vector<float> diagonal;
  for (int64_t i = 0; i < 100; ++i) {
    for (int64_t j = 0; j < 100; ++j) h_float(i, j) = static_cast<float>(h(i, j));
    diagonal.push_back(h_float(i, i));
  }
  for (const char* text : {"additive(2, 4)", "codebook(2, rows=20)"}) {
    const auto codec = *make_codec(text);
    CodedMatrix codes = solve(fmt::format("rtn({})", text), w, h.view()).codes;
    for (int p = 0; p < codec->linear_parts(); ++p) {
      const auto squared_slope = [&] {  // in the metric of the preconditioner
        const auto part = codec->linear_part(p, codes.mutable_view());
        Matrix<float> product(40, 100), w_hat(40, 100);
        codec->decode(codes.view(), 0, 40, w_hat.data());
        for (int64_t i = 0; i < 40; ++i) {
          for (int64_t j = 0; j < 100; ++j) {
            for (int64_t k = 0; k < 100; ++k) {
              product(i, j) += (w(i, k) - w_hat(i, k)) * h_float(k, j);
            }
          }
        }
        const size_t n = part->values().size();
        std::vector<double> slope(n), curvature(n);
        part->gather(product.view(), 1, slope);
        part->gather({diagonal.data(), 40, 100, 0}, 2, curvature);
        double sum = 0;
        for (size_t i = 0; i < n; ++i) {
          if (curvature[i] > 0) sum += slope[i] * slope[i] / curvature[i];
        }
        return sum;
      };
      const double before = squared_slope();
      const SolveInput input{w.view(), h.view()};
      const double loss_before = coded_loss(input, *codec, codes);
      refit(w.view(), h_float.view(), 200, *codec->linear_part(p, codes.mutable_view()));
      EXPECT_LT(coded_loss(input, *codec, codes), 0.97 * loss_before) << text << ", part " << p;
      EXPECT_LT(squared_slope(), 0.02 * before) << text << ", part " << p;
    }
  }
}

TEST(Em, ScaleOfTheHessianDoesNotMatter) {
  const Matrix<float> w = gaussian(30, 96, 30);
  const Matrix<double> h = hessian(96, 300, 31);
  Matrix<double> larger = h;
  for (int64_t i = 0; i < 96 * 96; ++i) larger.data()[i] *= 16;
  const char* text = "em(rtn(additive(2, 5)), rounds=3)";
  EXPECT_EQ(solve(text, w, h.view()).w_hat, solve(text, w, larger.view()).w_hat);
}

}  // namespace
}  // namespace quern
