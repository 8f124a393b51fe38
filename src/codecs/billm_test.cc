// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "codecs/test_matrices.h"

namespace quern {
namespace {

// The columns that are salient, by the plane of that name.
std::set<int64_t> salient(const CodedMatrix& codes) {
  std::set<int64_t> columns;
  for (int64_t j = 0; j < codes.n_in(); ++j) {
    if ((std::to_integer<int>(codes.plane(2)[static_cast<size_t>(j / 8)]) >> j % 8 & 1) != 0) {
      columns.insert(j);
    }
  }
  return columns;
}

// Columns 5, 40 and 77 are ten times the others.
Matrix<float> with_large_columns(uint64_t seed) {
  Matrix<float> w = gaussian_matrix(64, 128, seed);
  for (int64_t i = 0; i < 64; ++i) {
    for (const int64_t j : {5, 40, 77}) w(i, j) *= 10;
  }
  return w;
}

TEST(Billm, ErrorsOnAGaussian) {
  const Matrix<float> w = gaussian_matrix(256, 1024, 1);
  const double split = coding_error("billm(salient=0)", w);
  EXPECT_NEAR(split, 0.1132, 0.0012);
  EXPECT_NEAR(coding_error("billm(0, salient=0)", w), 0.1175, 0.0012);
  EXPECT_LT(coding_error("billm", w), split) << "a second pair of magnitudes costs no error";
  EXPECT_LT(coding_error("billm(mean=true)", w), split);
}

TEST(Billm, LargeColumnsAreSalient) {
  const Matrix<float> w = with_large_columns(2);
  const auto codec = *make_codec("billm(metric=magnitude)");
  const CodedMatrix codes = code_matrix(*codec, w);
  EXPECT_EQ(salient(codes), (std::set<int64_t>{5, 40, 77}));
  EXPECT_LT(coding_error("billm", w), 0.6 * coding_error("billm(salient=0)", w));
  EXPECT_LE(salient(code_matrix(**make_codec("billm(salient=2)"), w)).size(), 2u);
}

TEST(Billm, SaliencyIsTheSquareTimesTheImportance) {
  const Matrix<float> w = gaussian_matrix(64, 128, 3);
  std::vector<float> weight(128, 1.0f);
  for (const size_t j : {9u, 100u}) weight[j] = 400;
  for (const bool is_hessian : {true, false}) {
    const auto codec = *make_codec(is_hessian ? "billm" : "billm(metric=magnitude)");
    EXPECT_EQ(codec->weighs_columns(), is_hessian);
    CodedMatrix codes = *CodedMatrix::create(*codec, 64, 128);
    codec->fit_matrix({w.view(), weight}, codes.mutable_view());
    const std::set<int64_t> columns = salient(codes);
    EXPECT_EQ(columns == (std::set<int64_t>{9, 100}), is_hessian);
  }
}

// The residual binarisation written out: two signs, two scales.
TEST(Billm, GreedySalientColumnsAreBinarisedTwice) {
  const Matrix<float> w = with_large_columns(4);
  for (const bool has_mean : {false, true}) {
    const auto codec =
        *make_codec(has_mean ? "billm(mean=true, refine=false)" : "billm(refine=false)");
    const CodedMatrix codes = code_matrix(*codec, w);
    const Matrix<float> w_hat = decode_matrix(*codec, codes);
    const std::set<int64_t> columns = salient(codes);
    ASSERT_EQ(columns.size(), 3u);
    for (int64_t i = 0; i < 64; ++i) {
      std::vector<double> rest, sum(3);
      for (const int64_t j : columns) rest.push_back(w(i, j));
      double once = 0, twice = 0;
      for (int level = 0; level < 2; ++level) {
        double mean = 0, scale = 0;
        for (const double r : rest) mean += has_mean ? r / 3 : 0;
        for (const double r : rest) scale += std::abs(r - mean) / 3;
        for (size_t k = 0; k < 3; ++k) {
          const double term = mean + (rest[k] < mean ? -scale : scale);
          sum[k] += term;
          rest[k] -= term;
          (level == 0 ? once : twice) += rest[k] * rest[k];
        }
      }
      EXPECT_LE(twice, once);
      double error = 0, energy = 0;
      size_t k = 0;
      for (const int64_t j : columns) {
        error += std::pow(w(i, j) - w_hat(i, j), 2);
        energy += static_cast<double>(w(i, j)) * w(i, j);
        // Without means greedy signs are the nearest level's, and equal but for the halves.
        if (!has_mean) {
          EXPECT_NEAR(w_hat(i, j), sum[k], 2e-3 * std::sqrt(energy));
        }
        ++k;
      }
      EXPECT_LE(error, twice + 2e-3 * energy);
    }
  }
}

TEST(Billm, ResidualBinarisationOfAGaussianCostsWhatItSays) {
  const Matrix<float> w = gaussian_matrix(512, 128, 5);
  const auto codec = *make_codec("billm(refine=false)");
  CodedMatrix codes = *CodedMatrix::create(*codec, 512, 128);
  Matrix<float> w_hat(512, 128);
  for (size_t b = 0; b < 16; ++b) codes.mutable_view().planes[2][b] = std::byte{0xff};
  codec->fit(w.view(), {}, 0, 0, codes.mutable_view());
  codec->encode(w.view(), 0, 0, codes.mutable_view(), w_hat.view());
  EXPECT_NEAR(mean_square_error(w, w_hat), 0.127, 0.002);
}

TEST(Billm, MeansAndRefinementOnlyHelp) {
  const Matrix<float> w = with_large_columns(6);
  const double plain = coding_error("billm(refine=false)", w);
  const double refined = coding_error("billm", w);
  EXPECT_LT(refined, plain);
  EXPECT_LT(coding_error("billm(mean=true)", w), refined);
  EXPECT_LT(coding_error("billm(mean=true)", w), coding_error("billm(mean=true, refine=false)", w));
}

// What counts is how many bits are stored, not how many columns are salient.
TEST(Billm, BitsDoNotDependOnTheWeights) {
  EXPECT_EQ(coded_bits("billm", 64, 1024), 2.5 + 1.0 / 64);
  EXPECT_EQ(coded_bits("billm(salient=0)", 64, 1024), 2.5 + 1.0 / 64);
  EXPECT_EQ(coded_bits("billm(mean=true)", 64, 1024), 3 + 1.0 / 64);
}

// The published order: one sign, two levels, the split, salient columns too.
TEST(Billm, EveryPartPays) {
  const Matrix<float> w = with_large_columns(7);
  const double sign = coding_error("binary(128)", w), split = coding_error("billm(salient=0)", w);
  EXPECT_LT(split, sign);
  EXPECT_LT(coding_error("billm", w), split);
}

}  // namespace
}  // namespace quern
