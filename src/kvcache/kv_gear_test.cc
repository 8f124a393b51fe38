// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kvcache/kv_correction.h"
#include "kvcache/kv_testing.h"
#include "linalg/decompose.h"

namespace quern {
namespace {

double squared(const std::vector<float>& x) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value) * value;
  return sum;
}

double squared_error(const std::string& text, KvSide side, int64_t d_head,
                     const std::vector<float>& x) {
  std::vector<float> y = coded(*codec_of(text), side, d_head, x);
  for (size_t i = 0; i < x.size(); ++i) y[i] -= x[i];
  return squared(y);
}

std::string gear(int rank, int outliers) {
  return fmt::format("gear(int(2, group=64), rank={}, outliers={})", rank, outliers);
}

// What remains of x [rows, cols] beside its best product of each rank: tails of squared singular
// values.
std::vector<double> tails(const std::vector<float>& x, int64_t rows, int64_t cols) {
  Matrix<double> gram(cols, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        gram(i, j) += static_cast<double>(x[static_cast<size_t>(r * cols + i)]) *
                      x[static_cast<size_t>(r * cols + j)];
      }
    }
  }
  std::vector<double> values = eigen_symmetric(gram.view())->values;
  std::sort(values.begin(), values.end(), std::greater<>());
  std::vector<double> result(values.size() + 1);
  for (size_t i = values.size(); i-- > 0;) result[i] = result[i + 1] + values[i];
  return result;
}

TEST(KvGear, WithoutCorrectionItIsItsCodec) {
  const std::vector<float> x = gaussian_page(64, 1);
  for (const char* inner : {"int(2, per=channel)", "lloyd(3)"}) {
    const auto plain = codec_of(inner);
    const auto wrapped = codec_of(fmt::format("gear({}, rank=0, outliers=0)", inner));
    for (const KvSide side : kSides) {
      const auto n = static_cast<size_t>(plain->page_bytes(side, 64));
      ASSERT_EQ(static_cast<size_t>(wrapped->page_bytes(side, 64)), n);
      std::vector<std::byte> a(n), b(n);
      plain->encode(side, 64, x.data(), a.data());
      wrapped->encode(side, 64, x.data(), b.data());
      EXPECT_EQ(a, b) << inner;
    }
  }
}

// All that is left over has at most 16 dimensions. What remains is the rounding of factors to
// halves: of 16 products each, of orthonormal rows and of rows as large as the error.
TEST(KvGear, AFullRankLeavesHalves) {
  const std::vector<float> x = gaussian_page(16, 2);
  for (const KvSide side : kSides) {
    const double plain = squared_error("int(2, group=16)", side, 16, x);
    const double full = squared_error("gear(int(2, group=16), rank=16, outliers=0)", side, 16, x);
    EXPECT_LT(full, plain * 2 * 0x1p-22 * 16);
  }
}

TEST(KvGear, ErrorsFallWithRankAndOutliers) {
  const std::vector<float> x = gaussian_page(64, 3);
  for (const KvSide side : kSides) {
    double before = squared_error("int(2, group=64)", side, 64, x);
    for (const int rank : {1, 2, 4, 8, 16}) {
      const double error = squared_error(gear(rank, 0), side, 64, x);
      EXPECT_LT(error, before);
      before = error;
    }
    EXPECT_LT(squared_error(gear(0, 2), side, 64, x), squared_error(gear(0, 0), side, 64, x));
    EXPECT_LT(squared_error(gear(0, 8), side, 64, x), squared_error(gear(0, 2), side, 64, x));
  }
}

// Noise has no directions: of n x d numbers the best product of rank r holds no more than about
// r (sqrt n + sqrt d)^2 / (n d).
TEST(KvGear, OfNoiseLittleGoes) {
  std::vector<float> x(64 * kKeyBlock);
  Random random(4);  // uniform, far from codes: what they leave is uniform noise
  for (float& value : x) value = static_cast<float>(random.uniform());
  const double plain = squared_error("int(2, group=64)", KvSide::kValues, 64, x);
  for (const int rank : {1, 2, 4}) {
    const double removed = 1 - squared_error(gear(rank, 0), KvSide::kValues, 64, x) / plain;
    EXPECT_LT(removed, rank * 256.0 / 4096 * 1.05);
    EXPECT_GT(removed, rank * 256.0 / 4096 * .6);
  }
}

// A shift along a direction that all positions share: two pairs take it and one large vector.
TEST(KvGear, WhatPositionsShareGoesIntoFactors) {
  std::vector<float> x(64 * kKeyBlock), left(2 * kKeyBlock), right(2 * 64);
  Random random(5);
  for (std::vector<float>* part : {&left, &right}) {
    for (float& value : *part) value = static_cast<float>(random.gaussian());
  }
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = left[i / 64] * right[i % 64] + left[64 + i / 64] * right[64 + i % 64];
  }
  low_rank(x.data(), 64, 64, 2, left.data(), right.data());
  std::vector<float> rest = x;
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t k = 0; k < 2; ++k) rest[i] -= left[k * 64 + i / 64] * right[k * 64 + i % 64];
  }
  EXPECT_LT(squared(rest), squared(x) * 1e-12);
}

TEST(KvGear, FactorsAreNearTheBestAndOrthonormal) {
  std::vector<float> x = gaussian_page(64, 6);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= 1 / (1 + static_cast<float>(i / 64 % 8));
  const std::vector<double> best = tails(x, 64, 64);
  for (const int64_t rank : {1, 3, 8}) {
    std::vector<float> left(static_cast<size_t>(rank * 64)), right(left.size());
    low_rank(x.data(), 64, 64, rank, left.data(), right.data());
    std::vector<float> rest = x;
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t k = 0; k < static_cast<size_t>(rank); ++k) {
        rest[i] -= left[k * 64 + i / 64] * right[k * 64 + i % 64];
      }
    }
    const auto at = static_cast<size_t>(rank);
    EXPECT_GE(squared(rest), best[at] * (1 - 1e-6));
    EXPECT_LT(squared(rest), best[at] + .3 * (best[0] - best[at]));  // three rounds, no gap
    for (size_t a = 0; a < at; ++a) {
      for (size_t b = 0; b <= a; ++b) {
        double dot = 0;
        for (size_t i = 0; i < 64; ++i) dot += double{left[a * 64 + i]} * left[b * 64 + i];
        EXPECT_NEAR(dot, a == b ? 1 : 0, 64 * 0x1p-24);
      }
    }
  }
}

TEST(KvGear, OutliersComeBackAsHalvesAndAreTheExtremes) {
  std::vector<float> x = gaussian_page(64, 7);
  const std::vector<uint16_t> large = {5, 900, 901, 2222, 4095};
  for (const uint16_t at : large)
    x[at] = (at % 2 == 0 ? 40.f : -50.f) + static_cast<float>(at) / 999;
  EXPECT_EQ(choose_outliers(x.data(), 64, 64, 5), large);
  const auto codec = codec_of("gear(int(2, group=64), rank=2, outliers=0.13)");  // 5 of 4096
  for (const KvSide side : kSides) {
    const std::vector<float> y = coded(*codec, side, 64, x);
    for (const uint16_t at : large) EXPECT_NEAR(y[at], x[at], 64 * 0x1p-11) << at;
  }
}

TEST(KvGear, WrapsNothingButLevels) {
  for (const char* text : {"gear(f16)", "gear(gear(int(2)))", "gear(int(2), rank=17)"}) {
    EXPECT_FALSE(make_kv_codec(*spec::parse_call(text))) << text;
  }
  EXPECT_FALSE(codec_of("gear(int(2, group=16), rank=16)")->check(KvSide::kKeys, 8));
}

}  // namespace
}  // namespace quern
