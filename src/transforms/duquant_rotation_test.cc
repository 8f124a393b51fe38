// SPDX-License-Identifier: Apache-2.0
#include "transforms/duquant_rotation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quern {
namespace {

void expect_orthogonal(const Matrix<double>& r, double tolerance) {
  for (int64_t i = 0; i < r.rows(); ++i) {
    for (int64_t j = 0; j < r.rows(); ++j) {
      double dot = 0;
      for (int64_t c = 0; c < r.cols(); ++c) dot += r(i, c) * r(j, c);
      ASSERT_NEAR(dot, i == j ? 1 : 0, tolerance) << i << ", " << j;
    }
  }
}

// Gaussian values with one massive entry and one large channel, in different blocks of 128.
Matrix<float> toy(int64_t rows, int64_t cols) {
  Matrix<float> z(rows, cols);
  Random random(1);
  for (int64_t i = 0; i < rows * cols; ++i) z.data()[i] = static_cast<float>(random.gaussian());
  for (int64_t i = 0; i < rows; ++i) z(i, 5) *= 20;
  z(7, cols - 3) = 347;
  return z;
}

Matrix<double> rotated(const Matrix<float>& z, const Matrix<double>& r) {
  const int64_t n = r.rows();
  Matrix<double> y(z.rows(), z.cols());
  for (int64_t i = 0; i < z.rows(); ++i) {
    for (int64_t c = 0; c < z.cols(); ++c) {
      for (int64_t j = 0; j < n; ++j) y(i, c) += z(i, c / n * n + j) * r(j, c % n);
    }
  }
  return y;
}

double peak_of(const Matrix<double>& y, Peak kind) {
  const auto [low, high] = std::minmax_element(y.data(), y.data() + y.rows() * y.cols());
  return kind == Peak::kRange ? *high - *low : std::max(*high, -*low);
}

TEST(DuquantRotation, TheBaseMatrixIsOrthogonalWithAFlatFirstRow) {
  for (int64_t n : {1, 2, 3, 7, 8, 16, 31, 128}) {
    const Matrix<double> r = flat_rotation(n);
    expect_orthogonal(r, 1e-13);
    for (int64_t j = 0; j < n; ++j) {
      EXPECT_NEAR(r(0, j), 1 / std::sqrt(static_cast<double>(n)), 1e-14);
    }
  }
}

TEST(DuquantRotation, TheSearchFindsThePeakItNamesAndNeverARaisedOne) {
  const Matrix<float> z = toy(64, 256);
  for (const Peak peak : {Peak::kAbsMax, Peak::kRange}) {
    for (const RandomSide side : {RandomSide::kRight, RandomSide::kLeft}) {
      Random random(2);
      const GreedyRotation found = greedy_rotation(z.view(), {128, 12, peak, side}, random);
      expect_orthogonal(found.rotation, 1e-11);
      const Matrix<double> before = rotated(z, [] {
        Matrix<double> e(128, 128);
        for (int64_t i = 0; i < 128; ++i) e(i, i) = 1;
        return e;
      }());
      EXPECT_FLOAT_EQ(found.peak_before, peak_of(before, peak));
      EXPECT_NEAR(found.peak, peak_of(rotated(z, found.rotation), peak), 1e-6 * found.peak);
      EXPECT_LT(found.peak, 0.5 * found.peak_before);  // 347 spread over 128 channels
      EXPECT_GT(found.steps, 0);
    }
  }
}

TEST(DuquantRotation, MoreStepsNeverRaiseThePeak) {
  const Matrix<float> z = toy(32, 128);
  double last = 1e30;
  for (int steps : {0, 1, 4, 16, 32}) {
    Random random(3);
    const GreedyRotation found = greedy_rotation(z.view(), {64, steps}, random);
    EXPECT_LE(found.peak, last);
    if (steps == 0) {
      EXPECT_EQ(found.steps, 0);
      EXPECT_EQ(found.peak, found.peak_before);
    }
    last = found.peak;
  }
}

TEST(DuquantRotation, ARandomPartOnTheLeftSpreadsAMassiveEntryAtOnce) {
  // One step on a lone entry of 347: its channel goes through the flat row, 347 / sqrt 128.
  Matrix<float> z(4, 128);
  z(2, 17) = 347;
  Random left(4), right(4);
  const double flat = 347 / std::sqrt(128.0);
  const auto one = [&](RandomSide side, Random& random) {
    return greedy_rotation(z.view(), {128, 1, Peak::kAbsMax, side}, random).peak;
  };
  EXPECT_NEAR(one(RandomSide::kLeft, left), flat, 1e-6 * flat);
  EXPECT_GT(one(RandomSide::kRight, right), 1.5 * flat);
}

TEST(DuquantRotation, WhatCannotGainKeepsTheIdentity) {
  const Matrix<float> zero(3, 16);
  Random random(5);
  const GreedyRotation found = greedy_rotation(zero.view(), {8, 4}, random);
  EXPECT_EQ(found.steps, 0);
  EXPECT_EQ(found.peak, 0);
  expect_orthogonal(found.rotation, 0);
}

TEST(DuquantRotation, ZigzagIsAPermutationThatEvensBlocksOut) {
  std::vector<float> size(512);
  Random random(6);
  for (float& s : size) s = static_cast<float>(std::exp(2 * random.gaussian()));
  std::sort(size.begin(), size.begin() + 200);  // large channels come together
  constexpr int64_t kBlock = 64;
  const std::vector<int32_t> perm = zigzag(size, kBlock);
  std::vector<int32_t> sorted = perm, all(perm.size());
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
  const auto variance = [&](const std::vector<int32_t>& order) {
    std::vector<double> means;
    for (size_t b = 0; b < order.size(); b += kBlock) {
      double sum = 0;
      for (size_t t = 0; t < kBlock; ++t) sum += size[static_cast<size_t>(order[b + t])];
      means.push_back(sum / kBlock);
    }
    const double mean = std::accumulate(means.begin(), means.end(), 0.0) / 8;
    double squares = 0;
    for (const double m : means) squares += (m - mean) * (m - mean);
    return squares / 8;
  };
  EXPECT_LT(variance(perm), 0.05 * variance(all));
  for (size_t i = 1; i < perm.size(); ++i) {
    if (i % kBlock == 0) continue;
    EXPECT_GE(size[static_cast<size_t>(perm[i - 1])], size[static_cast<size_t>(perm[i])]);
  }
}

TEST(DuquantRotation, ZigzagDealsThereAndBack) {
  const std::vector<float> size = {8, 7, 6, 5, 4, 3, 2, 1, 0};
  EXPECT_EQ(zigzag(size, 3), (std::vector<int32_t>{0, 5, 6, 1, 4, 7, 2, 3, 8}));
  EXPECT_EQ(zigzag(size, 9), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

}  // namespace
}  // namespace quern
