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

}  // namespace
}  // namespace quern
