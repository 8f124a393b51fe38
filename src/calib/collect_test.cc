// SPDX-License-Identifier: Apache-2.0
#include "calib/collect.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gaussian.h"

namespace quern {
namespace {

constexpr int64_t kTokens = 700, kIn = 40, kOut = 9;

// What the original reads and what is read behind coded layers: a linear map of it, with noise.
struct Pair {
  Matrix<float> source, coded;
};

Pair drifted(float noise) {
  Pair pair{gaussian(kTokens, kIn, 1), gaussian(kTokens, kIn, 2)};
  const Matrix<float> map = gaussian(kIn, kIn, 3);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t j = 0; j < kIn; ++j) {
      double sum = pair.source(t, j) + static_cast<double>(noise) * pair.coded(t, j);
      for (int64_t k = 0; k < kIn; ++k) sum += 0.05 * map(k, j) * pair.source(t, k);
      pair.coded(t, j) = static_cast<float>(sum);
    }
  }
  return pair;
}

void show(const Pair& pair, GramTap& tap) {
  tap.expect(&pair.source);
  tap.input(Role::kQ, -1, pair.coded.view());
}

// Mean squared distance of W' x to W x_source.
double distance(const Matrix<float>& w, const Matrix<float>& w_new, const Pair& pair) {
  double total = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kOut; ++i) {
      double difference = 0;
      for (int64_t j = 0; j < kIn; ++j) {
        difference += static_cast<double>(w_new(i, j)) * pair.coded(t, j) -
                      static_cast<double>(w(i, j)) * pair.source(t, j);
      }
      total += difference * difference;
    }
  }
  return total / kTokens;
}

TEST(Drift, AnInvertibleDriftIsUndone) {
  const Pair pair = drifted(0);
  GramTap tap(Role::kQ, -1, -1);
  show(pair, tap);
  const Matrix<float> w = gaussian(kOut, kIn, 4), drift = tap.drift(-1, 1e-9);
  Matrix<float> target = w;
  add_product(1, drift.view(), target);
  EXPECT_LT(distance(w, target, pair), 1e-6 * distance(w, w, pair));
}

TEST(Drift, TheTargetIsBetterThanWAndThanItsNeighbours) {
  const Pair pair = drifted(0.3f);
  GramTap tap(Role::kQ, -1, -1);
  show(pair, tap);
  const Matrix<float> w = gaussian(kOut, kIn, 4), drift = tap.drift(-1, 1e-9);
  Matrix<float> target = w;
  add_product(1, drift.view(), target);
  const double best = distance(w, target, pair);
  EXPECT_LT(best, 0.9 * distance(w, w, pair));
  for (const float share : {0.0f, 0.5f, 0.9f, 1.1f}) {
    Matrix<float> other = w;
    add_product(share, drift.view(), other);
    EXPECT_GT(distance(w, other, pair), best) << share;
  }
}

TEST(Drift, NothingExpectedOrNothingReadGivesNone) {
  const Pair pair = drifted(0);
  GramTap tap(Role::kQ, -1, -1);
  EXPECT_TRUE(tap.drift(-1, 0.01).empty());
  tap.input(Role::kQ, -1, pair.coded.view());
  EXPECT_TRUE(tap.drift(-1, 0.01).empty());
}

std::shared_ptr<const ActRounding> rounding(std::string_view text) {
  return std::make_shared<ActRounding>(ActRounding{*make_act(text), {}});
}

// Weights are coded for what they will read.
TEST(GramTap, SumsUpRoundedRows) {
  const Matrix<float> x = gaussian(50, kIn, 5);
  Matrix<float> rounded(50, kIn);
  const auto act = rounding("int(3)");
  for (int64_t i = 0; i < 50; ++i) act->values(x.row(i), kIn, rounded.row(i));
  GramTap with(Role::kQ, -1, -1), of_rounded(Role::kQ, -1, -1), plain(Role::kQ, -1, -1);
  with.round(-1, act);
  for (GramTap* tap : {&with, &plain}) {
    tap->expect(&x);
    tap->input(Role::kQ, -1, x.view());
  }
  of_rounded.expect(&x);
  of_rounded.input(Role::kQ, -1, rounded.view());
  const auto a = with.hessian(-1), b = of_rounded.hessian(-1), c = plain.hessian(-1);
  double difference = 0;
  for (int64_t i = 0; i < kIn; ++i) {
    for (int64_t j = 0; j < kIn; ++j) {
      EXPECT_EQ(a(i, j), b(i, j));
      difference += std::abs(a(i, j) - c(i, j));
    }
  }
  EXPECT_GT(difference, 0);
  EXPECT_TRUE(with.drift(-1, 0.01) == of_rounded.drift(-1, 0.01));
  EXPECT_FALSE(with.drift(-1, 0.01) == plain.drift(-1, 0.01));
}

TEST(RangeTap, KeepsTheEndsOfEveryExpertAndOfAll) {
  RangeTap tap(Role::kDown);
  Matrix<float> first = gaussian(20, 32, 6), second = gaussian(20, 32, 7);
  first(3, 4) = 9;
  second(5, 30) = -11;
  tap.input(Role::kDown, 0, first.view());
  tap.input(Role::kDown, 2, second.view());
  tap.input(Role::kGate, 0, gaussian(2, 64, 8).view());
  const std::shared_ptr<const ActQuantizer> act = *make_act("int(8, per=tensor, scale=static)");
  EXPECT_EQ(tap.rounding(act, 0)->ranges, std::vector<float>{9});
  EXPECT_EQ(tap.rounding(act, 2)->ranges, std::vector<float>{11});
  EXPECT_EQ(tap.rounding(act, 1)->ranges, std::vector<float>{11}) << "no row reached it";
  const std::shared_ptr<const ActQuantizer> grouped =
      *make_act("int(7, per=group, group=16, sym=false, scale=static)");
  const std::vector<float> ranges = tap.rounding(grouped, 0)->ranges;
  ASSERT_EQ(ranges.size(), 4u);
  EXPECT_EQ(ranges[1], 9);
  EXPECT_LT(ranges[0], 0);
}

}  // namespace
}  // namespace quern
