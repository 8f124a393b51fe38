// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

TEST(Binary, SignsAndMeanMagnitude) {
  const auto codec = *make_codec("binary(4)");
  Matrix<float> w(1, 6);
  for (int64_t j = 0; j < 6; ++j) w(0, j) = std::vector<float>{1, -2, 0, -5, 3, -1}[j];
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  const float expected[6] = {2, -2, 2, -2, 2, -2};  // the sign of 0 is plus
  for (int64_t j = 0; j < 6; ++j) EXPECT_EQ(w_hat(0, j), expected[j]) << j;
}

TEST(Binary, AMeanMakesAnyTwoValuesExact) {
  const auto codec = *make_codec("binary(8, mean=true)");
  Matrix<float> w(2, 16);
  for (int64_t j = 0; j < 16; ++j) {
    w(0, j) = j % 2 == 0 ? 3 : 0.5f;
    w(1, j) = j % 4 < 2 ? -1 : -2;
  }
  EXPECT_EQ(decode_matrix(*codec, code_matrix(*codec, w)), w);
}

// Squared errors spread by less than .5, and there are 724 * 724 of them; a vector entry for 256
// weights takes one of 256 parts off.
TEST(Binary, ErrorsOnAGaussian) {
  const Matrix<float> w = gaussian_matrix(256, 2048, 1);
  EXPECT_NEAR(coding_error("binary(0)", w), 1 - 2 / M_PI, 3 * 0.5 / 724);
  EXPECT_NEAR(coding_error("binary(scale=vectors)", w), (1 - 2 / M_PI) * 255 / 256, 3 * 0.5 / 724);
}

TEST(Binary, VectorsAreExactWhereMagnitudesHaveRankOne) {
  Random random(2);
  Matrix<float> w(7, 33);
  for (int64_t i = 0; i < 7; ++i) {
    for (int64_t j = 0; j < 33; ++j) {
      w(i, j) = static_cast<float>((i + 1) * (1 + j % 5)) * (random.uniform() < 0.5 ? -1 : 1);
    }
  }
  const auto codec = *make_codec("binary(scale=vectors)");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t i = 0; i < 7; ++i) {
    for (int64_t j = 0; j < 33; ++j) {
      // Two halves, each off by at most 2^-11 of itself.
      EXPECT_NEAR(w_hat(i, j), w(i, j), 0x1.1p-10 * std::abs(w(i, j)));
    }
  }
}

// g h^T is a fixed point of both least squares steps: no row and no column has a better factor.
TEST(Binary, VectorsSolveBothLeastSquaresProblems) {
  Matrix<float> w = gaussian_matrix(48, 96, 3);
  for (int64_t i = 0; i < 48; ++i) {
    for (int64_t j = 0; j < 96; ++j) w(i, j) *= static_cast<float>(1 + i % 7) / (1 + j % 5);
  }
  const auto codec = *make_codec("binary(scale=vectors)");
  CodedMatrix codes = *CodedMatrix::create(*codec, 48, 96);
  codec->fit_matrix({w.view()}, codes.mutable_view());
  const Matrix<float> scaled = decode_matrix(*codec, codes);  // no sign is set: g h^T
  for (int64_t i = 0; i < 48; ++i) {
    double dot = 0, energy = 0;
    for (int64_t j = 0; j < 96; ++j) {
      dot += static_cast<double>(std::abs(w(i, j))) * scaled(i, j);
      energy += static_cast<double>(scaled(i, j)) * scaled(i, j);
    }
    EXPECT_NEAR(dot / energy, 1, 2e-3) << "row " << i;
  }
  for (int64_t j = 0; j < 96; ++j) {
    double dot = 0, energy = 0;
    for (int64_t i = 0; i < 48; ++i) {
      dot += static_cast<double>(std::abs(w(i, j))) * scaled(i, j);
      energy += static_cast<double>(scaled(i, j)) * scaled(i, j);
    }
    EXPECT_NEAR(dot / energy, 1, 2e-3) << "column " << j;
  }
}

TEST(Binary, VectorsSuitColumnsOfUnlikeSize) {
  Matrix<float> w = gaussian_matrix(64, 128, 4);
  const double alike = coding_error("binary(scale=vectors)", w);
  EXPECT_NEAR(coding_error("binary(0)", w) / alike, 1, 0.02);
  double energy = 0;
  for (int64_t i = 0; i < 64; ++i) {
    for (int64_t j = 0; j < 128; j += 16) w(i, j) *= 10;
    for (int64_t j = 0; j < 128; ++j) energy += static_cast<double>(w(i, j)) * w(i, j) / (64 * 128);
  }
  EXPECT_LT(coding_error("binary(scale=vectors)", w), 1.05 * alike * energy);
  EXPECT_GT(coding_error("binary(0)", w), 2 * alike * energy);
}

TEST(Binary, VectorsDoNotDependOnThreads) {
  const Matrix<float> w = gaussian_matrix(200, 300, 5);
  const auto codec = *make_codec("binary(scale=vectors)");
  set_thread_count(1);
  const Matrix<float> one = decode_matrix(*codec, code_matrix(*codec, w));
  set_thread_count(3);
  EXPECT_EQ(decode_matrix(*codec, code_matrix(*codec, w)), one);
  set_thread_count(0);
}

TEST(Binary, BitsAreThoseOfThePage) {
  EXPECT_EQ(coded_bits("binary", 16, 1024), 1.125);
  EXPECT_EQ(coded_bits("binary(mean=true)", 16, 1024), 1.25);
  EXPECT_EQ(coded_bits("binary(scale=vectors)", 64, 1024), 1 + 16.0 / 64 + 16.0 / 1024);
}

TEST(Binary, VectorsHaveNoMean) { EXPECT_FALSE(make_codec("binary(mean=true, scale=vectors)")); }

}  // namespace
}  // namespace quern
