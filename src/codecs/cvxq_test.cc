// SPDX-License-Identifier: Apache-2.0
#include "codecs/cvxq.h"

#include <cstring>

#include "base/float_types.h"
#include "base/random.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

struct Coded {
  std::unique_ptr<Codec> codec;
  CodedMatrix codes;
  Matrix<float> w_hat;

  int depth(int64_t cluster, int64_t col) const {
    const int64_t pairs = (codes.n_in() + 1) / 2;
    const int pair =
        std::to_integer<int>(codes.plane(2)[static_cast<size_t>(cluster * pairs + col / 2)]);
    return col % 2 == 0 ? pair & 15 : pair >> 4;
  }
  float centre(int64_t cluster, int64_t col) const {
    return half_at(codes.plane(3).data(), cluster * codes.n_in() + col);
  }
};

Coded code(const std::string& text, const Matrix<float>& w, std::span<const float> weight = {}) {
  auto codec = *make_codec(text);
  CodedMatrix codes = *CodedMatrix::create(*codec, w.rows(), w.cols());
  codec->fit_matrix({w.view(), weight}, codes.mutable_view());
  Matrix<float> w_hat(w.rows(), w.cols());
  codec->encode(w.view(), 0, 0, codes.mutable_view(), w_hat.view());
  EXPECT_EQ(decode_matrix(*codec, codes), w_hat);
  return {std::move(codec), std::move(codes), std::move(w_hat)};
}

Matrix<float> with_columns(Matrix<float> w, const std::function<double(int64_t)>& factor) {
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) w(i, j) *= static_cast<float>(factor(j));
  }
  return w;
}

TEST(Cvxq, ColumnsOfLargerVarianceGetMoreBits) {
  const auto power = [](int64_t j) { return std::exp2(static_cast<double>(j % 4)); };
  const Matrix<float> w = with_columns(gaussian_matrix(512, 64, 1), power);
  const Coded coded = code("cvxq(3)", w);
  int64_t bits = 0;
  for (int64_t j = 0; j < 64; ++j) {
    bits += coded.depth(0, j);
    // Steps of 6 dB; the first bits of this compander win less than 6 dB each, later ones nearly
    // so.
    if (j % 4 > 0) {
      EXPECT_GT(coded.depth(0, j), coded.depth(0, j - 1)) << j;
    }
  }
  EXPECT_EQ(bits, 3 * 64);
}

TEST(Cvxq, ImportanceCountsAsVarianceDoes) {
  const Matrix<float> w = gaussian_matrix(512, 64, 2);
  std::vector<float> weight;
  for (int64_t j = 0; j < 64; ++j) weight.push_back(static_cast<float>(std::pow(4.0, j % 4)));
  const Coded coded = code("cvxq(3)", w, weight);
  for (int64_t j = 0; j < 64; ++j) {
    if (j % 4 > 0) {
      EXPECT_GT(coded.depth(0, j), coded.depth(0, j - 1)) << j;
    }
  }
}

// Moving one bit from any group to any other must not lower the error that depths were chosen by.
TEST(Cvxq, NoBitIsBetterSpentElsewhere) {
  Random random(3);
  std::vector<double> scales;
  for (int j = 0; j < 48; ++j) scales.push_back(std::exp(1.5 * random.gaussian()));
  const Matrix<float> w = with_columns(gaussian_matrix(256, 48, 4),
                                       [&](int64_t j) { return scales[static_cast<size_t>(j)]; });
  const Coded coded = code("cvxq(2.5, levels=lloyd)", w);
  const double error[9] = {1,         0.36338,   0.117482,  0.034548, 0.009501,
                           0.0025047, 6.4424e-4, 1.6348e-4, 4.1185e-5};
  int bits = 0;
  double least_lost = INFINITY, most_won = 0;
  for (int64_t j = 0; j < 48; ++j) {
    double variance = 0;
    for (int64_t i = 0; i < w.rows(); ++i) variance += std::pow(w(i, j), 2.0);
    const auto depth = static_cast<size_t>(coded.depth(0, j));
    bits += coded.depth(0, j);
    if (depth > 0) least_lost = std::min(least_lost, variance * (error[depth - 1] - error[depth]));
    if (depth < 8) most_won = std::max(most_won, variance * (error[depth] - error[depth + 1]));
  }
  EXPECT_EQ(bits, 120);
  EXPECT_GT(least_lost, 0.97 * most_won);  // variances are about the median there
}

TEST(Cvxq, WinsWhatReverseWaterFillingForetells) {
  const auto factor = [](int64_t j) { return std::exp2(static_cast<double>(j % 8) / 2); };
  const Matrix<float> w = with_columns(gaussian_matrix(1024, 64, 5), factor);
  double arithmetic = 0, logarithms = 0;
  for (int64_t j = 0; j < 64; ++j) {
    arithmetic += factor(j) * factor(j) / 64;
    logarithms += 2 * std::log(factor(j)) / 64;
  }
  const Coded coded = code("cvxq(5, levels=lloyd)", w);
  const double uniform = arithmetic * 0.0025047;
  const double won = uniform / mean_square_error(w, coded.w_hat);
  EXPECT_NEAR(won, arithmetic / std::exp(logarithms), 0.12 * won);
}

TEST(Cvxq, BudgetIsKeptAtEveryRate) {
  const Matrix<float> w = gaussian_matrix(70, 96, 6);
  for (const double bits : {0.25, 1.0, 1.5, 2.33, 3.0, 4.0, 7.9}) {
    const Coded coded = code(fmt::format("cvxq({}, group=16)", bits), w);
    int64_t spent = 0;
    for (int64_t c = 0; c < 4; ++c) {
      for (int64_t j = 0; j < 96; ++j) spent += coded.depth(c, j);
    }
    EXPECT_LE(static_cast<double>(spent) / (4 * 96), bits + 8.0 / 96);
    EXPECT_GE(static_cast<double>(spent) / (4 * 96), bits - 8.0 / 96);
  }
}

TEST(Cvxq, GroupsWithoutBitsAreTheirMedian) {
  Matrix<float> w =
      with_columns(gaussian_matrix(65, 32, 7), [](int64_t j) { return j == 3 ? 1e-4 : 1; });
  for (int64_t i = 0; i < 65; ++i) w(i, 3) += 0.5f;
  const Coded coded = code("cvxq(1)", w);
  ASSERT_EQ(coded.depth(0, 3), 0);
  std::vector<float> column;
  for (int64_t i = 0; i < 65; ++i) column.push_back(w(i, 3));
  std::sort(column.begin(), column.end());
  for (int64_t i = 0; i < 65; ++i)
    EXPECT_EQ(coded.w_hat(i, 3), f16_to_float(float_to_f16(column[32])));
}

TEST(Cvxq, RowsOfLikeVarianceShareBits) {
  Matrix<float> w = gaussian_matrix(64, 40, 8);
  for (int64_t i = 0; i < 64; i += 2) {
    for (int64_t j = 0; j < 40; ++j) w(i, j) *= 16;
  }
  const Coded coded = code("cvxq(4, group=32)", w);
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(std::to_integer<int>(coded.codes.plane(5)[static_cast<size_t>(i)]),
              i % 2 == 0 ? 1 : 0);
  }
  for (int64_t j = 0; j < 40; ++j) EXPECT_GE(coded.depth(1, j), coded.depth(0, j) + 3);
}

TEST(Cvxq, DecodersAgree) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(11);
  for (const int64_t n : {1, 15, 16, 33, 200}) {
    CvxqCluster cluster;
    int32_t bit = 0;
    for (int64_t j = 0; j < n; ++j) {
      cluster.bit.push_back(bit);
      cluster.depth.push_back(static_cast<int32_t>(random.next() % 9));
      bit += cluster.depth.back();
      cluster.centre.push_back(static_cast<float>(random.gaussian()));
      cluster.scale.push_back(static_cast<float>(random.gaussian()));
    }
    std::vector<uint8_t> stream(static_cast<size_t>(bit / 8 + 1 + kCvxqPadding));
    for (uint8_t& byte : stream) byte = static_cast<uint8_t>(random.next());
    std::vector<float> levels(kCvxqAllLevels);
    for (float& level : levels) level = static_cast<float>(random.gaussian());
    std::vector<float> a(static_cast<size_t>(n)), b = a;
    cvxq_decode_row_ref(cluster, levels.data(), stream.data(), a.data());
    cvxq_decode_row_avx512(cluster, levels.data(), stream.data(), b.data());
    EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float))) << n;
  }
}

TEST(Cvxq, SaysWhatIsTooLarge) {
  const auto codec = *make_codec("cvxq(2, group=16)");
  EXPECT_FALSE(codec->planes(int64_t{1} << 21, 64));
  EXPECT_FALSE(codec->planes(int64_t{1} << 40, int64_t{1} << 40));
  EXPECT_FALSE(make_codec("cvxq(9)"));
  EXPECT_FALSE(make_codec("cvxq"));
}

}  // namespace
}  // namespace quern
