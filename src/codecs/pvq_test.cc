// SPDX-License-Identifier: Apache-2.0
#include "codecs/pvq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "codecs/pvq_index.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

int l1_norm(const std::vector<int16_t>& y) {
  int sum = 0;
  for (const int16_t v : y) sum += std::abs(v);
  return sum;
}

double binomial(int n, int k) {
  double value = 1;
  for (int i = 1; i <= k; ++i) value = value * (n - k + i) / i;
  return value;
}

TEST(PvqIndex, CountsAreThoseOfTheClosedForm) {
  const auto n = [](int dim, int pulses) {
    return static_cast<double>(PvqIndex::counts(dim, pulses).back());
  };
  EXPECT_EQ(n(8, 8), 157184);
  EXPECT_EQ(n(4, 5), 360);
  EXPECT_EQ(n(16, 5), 285088);
  EXPECT_NEAR(std::log2(n(32, 20)), 59.674, 5e-4);
  EXPECT_NEAR(std::log2(n(64, 41)), 124.22, 5e-3);
  for (const int dim : {1, 2, 3, 8, 17, 64}) {
    for (const int pulses : {1, 2, 7, 20, 41}) {
      double sum = 0;
      for (int j = 1; j <= std::min(dim, pulses); ++j) {
        sum += std::pow(2, j) * binomial(dim, j) * binomial(pulses - 1, j - 1);
      }
      EXPECT_NEAR(n(dim, pulses) / sum, 1, 1e-12) << dim << ", " << pulses;
    }
  }
  EXPECT_TRUE(PvqIndex::fits(128, 27));
  EXPECT_FALSE(PvqIndex::fits(64, 50));
}

TEST(PvqIndex, EveryIndexIsOnePointAndBack) {
  const int shapes[][2] = {{1, 5}, {2, 3}, {2, 9}, {3, 4}, {4, 4}, {4, 20},
                           {5, 3}, {6, 5}, {7, 3}, {8, 2}, {8, 5}, {9, 3}};
  for (const auto& [dim, pulses] : shapes) {
    const PvqIndex index(dim, pulses);
    std::vector<int16_t> y(static_cast<size_t>(dim)), last(y);
    for (uint64_t i = 0; i < static_cast<uint64_t>(index.size()); ++i) {
      index.point_of(i, y.data());
      ASSERT_EQ(l1_norm(y), pulses);
      ASSERT_EQ(static_cast<uint64_t>(index.index_of(y.data())), i) << dim << ", " << pulses;
    }
    index.point_of(~Wide{0}, last.data());
    EXPECT_EQ(last, y) << "an index past the last is the last";
  }
}

TEST(PvqIndex, WideIndicesComeBack) {
  Random random(1);
  const int shapes[][2] = {{32, 20}, {32, 98},  {64, 41}, {128, 27}, {24, 15},
                           {7, 255}, {16, 196}, {37, 30}, {100, 3}};
  for (const auto& [dim, pulses] : shapes) {
    const PvqIndex index(dim, pulses);
    EXPECT_LE(index.size() - 1, ~Wide{0} >> (128 - index.index_bits()));
    std::vector<int16_t> y(static_cast<size_t>(dim));
    for (int trial = 0; trial < 2000; ++trial) {
      const Wide drawn = (static_cast<Wide>(random.next()) << 64 | random.next()) % index.size();
      index.point_of(drawn, y.data());
      ASSERT_EQ(l1_norm(y), pulses);
      ASSERT_TRUE(index.index_of(y.data()) == drawn) << dim << ", " << pulses;
    }
  }
}

TEST(PvqIndex, SomeIndicesMeanForEverThesePoints) {
  const PvqIndex index(5, 3);
  std::vector<int16_t> y(5);
  index.point_of(0, y.data());
  EXPECT_EQ(y, (std::vector<int16_t>{0, 0, 0, 0, 3}));
  index.point_of(1, y.data());
  EXPECT_EQ(y, (std::vector<int16_t>{0, 0, 0, 0, -3}));
  index.point_of(100, y.data());
  EXPECT_EQ(y, (std::vector<int16_t>{-1, 0, 1, 0, 1}));
  index.point_of(index.size() - 1, y.data());
  EXPECT_EQ(y, (std::vector<int16_t>{-3, 0, 0, 0, 0}));
}

TEST(PvqSearch, FindsNearlyTheBestOfAllPoints) {
  for (const int pulses : {2, 5, 8}) {
    const PvqIndex index(8, pulses);
    std::vector<std::vector<int16_t>> points;
    for (uint64_t i = 0; i < static_cast<uint64_t>(index.size()); ++i) {
      points.emplace_back(8);
      index.point_of(i, points.back().data());
    }
    constexpr int kTrials = 300;
    Random random(2);
    double best_error = 0, found_error = 0;
    int n_best = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      float x[8], gain;
      int16_t y[8];
      double energy = 0, most = 0;
      for (float& v : x) {
        v = static_cast<float>(random.gaussian());
        energy += static_cast<double>(v) * v;
      }
      for (const auto& point : points) {
        double product = 0, norm = 0;
        for (size_t i = 0; i < 8; ++i) {
          product += static_cast<double>(x[i]) * point[i];
          norm += point[i] * point[i];
        }
        most = std::max(most, product / std::sqrt(norm));
      }
      pvq_search(best_isa())(x, 1, 8, pulses, y, &gain);
      best_error += energy - most * most;
      found_error += energy - static_cast<double>(gain) * gain;
      n_best += gain > most * (1 - 1e-5) ? 1 : 0;
    }
    EXPECT_LT(found_error, 1.002 * best_error) << pulses;
    EXPECT_GE(n_best, 0.97 * kTrials) << pulses;
  }
}

TEST(PvqSearch, EveryInstructionSetFindsTheSamePoints) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float special[] = {0,     -0.0f,  kInfinity, -kInfinity, std::nanf(""),
                           3e38f, -1e30f, 1e-30f,    1e-42f};
  Random random(3);
  const int shapes[][2] = {{1, 3},   {2, 255}, {7, 20},  {8, 1},
                           {16, 10}, {24, 15}, {33, 40}, {128, 27}};
  for (const auto& [dim, pulses] : shapes) {
    constexpr int64_t kVectors = 300;
    std::vector<float> x(static_cast<size_t>(kVectors * dim));
    for (float& v : x) v = static_cast<float>(random.gaussian());
    for (size_t i = 0; i < x.size() / 2; ++i) {
      if (random.below(6) == 0) x[i] = special[random.below(9)];
    }
    std::fill_n(x.begin(), dim, 0.0f);
    std::vector<int16_t> expected(x.size()), got(x.size());
    std::vector<float> gains(kVectors), got_gains(kVectors);
    pvq_search_ref(x.data(), kVectors, dim, pulses, expected.data(), gains.data());
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto first = expected.begin() + v * dim;
      EXPECT_EQ(l1_norm({first, first + dim}), pulses);
    }
    EXPECT_EQ(gains[0], 0);
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!host_has(isa)) continue;
      pvq_search(isa)(x.data(), kVectors, dim, pulses, got.data(), got_gains.data());
      EXPECT_EQ(got, expected) << isa_name(isa) << ", dim " << dim;
      EXPECT_EQ(got_gains, gains) << isa_name(isa) << ", dim " << dim;
    }
  }
}

// M of [width, width] within points of `dim`.
struct Metric {
  Metric(int dim, const Matrix<float>& m) {
    of = {nullptr, dim, static_cast<int>(m.cols())};
    values.resize(static_cast<size_t>(dim * of.stride()));
    for (int64_t i = 0; i < m.rows(); ++i) {
      std::copy_n(m.row(i), m.cols(), &values[static_cast<size_t>(i * of.stride())]);
    }
    of.values = values.data();
  }
  // <a, M b>
  template <class A, class B>
  double product(const A* a, const B* b) const {
    double sum = 0;
    for (int i = 0; i < of.dim; ++i) {
      for (int j = 0; j < of.dim; ++j) {
        sum += static_cast<double>(a[i]) * values[static_cast<size_t>(i * of.stride() + j)] * b[j];
      }
    }
    return sum;
  }
  AlignedVector<float> values;
  PvqMetric of;
};

TEST(PvqRefine, FindsNearlyTheBestOfAllPointsInAMetric) {
  const PvqIndex index(6, 5);
  const Metric metric(6, random_metric(6, 7));
  double best_error = 0, plain_error = 0, found_error = 0;
  Random random(8);
  for (int trial = 0; trial < 200; ++trial) {
    float x[6], gain;
    for (float& v : x) v = static_cast<float>(random.gaussian());
    int16_t y[6];
    const auto error = [&] {
      return metric.product(x, x) - std::pow(metric.product(x, y), 2) / metric.product(y, y);
    };
    double least = HUGE_VAL;
    for (uint64_t i = 0; i < static_cast<uint64_t>(index.size()); ++i) {
      index.point_of(i, y);
      if (metric.product(x, y) > 0) least = std::min(least, error());
    }
    pvq_search(best_isa())(x, 1, 6, 5, y, &gain);
    const double before = error();
    pvq_refine(best_isa())(metric.of, x, 1, y, &gain);
    EXPECT_LE(error(), before * (1 + 1e-5));
    best_error += least;
    plain_error += before;
    found_error += error();
  }
  EXPECT_LT(found_error, 1.1 * best_error);
  EXPECT_GT(plain_error, 1.5 * best_error) << "there was something to find";
}

TEST(PvqRefine, TheGainIsTheBestLengthAndPulsesStayAsMany) {
  constexpr int64_t kVectors = 40;
  for (const auto& [dim, width, pulses] :
       {std::array{8, 8, 5}, std::array{33, 20, 30}, std::array{128, 128, 27}}) {
    const Metric metric(dim, random_metric(width, 9));
    const Matrix<float> x = gaussian_matrix(kVectors, dim, 10);
    std::vector<int16_t> y(static_cast<size_t>(kVectors * dim));
    std::vector<float> gains(kVectors);
    pvq_search(best_isa())(x.data(), kVectors, dim, pulses, y.data(), gains.data());
    pvq_refine(best_isa())(metric.of, x.data(), kVectors, y.data(), gains.data());
    for (int64_t v = 0; v < kVectors; ++v) {
      const std::vector<int16_t> point(y.begin() + v * dim, y.begin() + (v + 1) * dim);
      EXPECT_EQ(l1_norm(point), pulses);
      double norm = 0;
      for (const int16_t n : point) norm += n * n;
      const double best = std::sqrt(norm) * metric.product(x.row(v), point.data()) /
                          metric.product(point.data(), point.data());
      EXPECT_NEAR(gains[static_cast<size_t>(v)] / best, 1, 1e-4);
    }
  }
}

TEST(PvqRefine, EveryInstructionSetFindsTheSamePoints) {
  constexpr int64_t kVectors = 60;
  for (const auto& [dim, width, pulses] :
       {std::array{1, 1, 3}, std::array{7, 7, 20}, std::array{16, 16, 10}, std::array{24, 9, 15},
        std::array{64, 64, 42}, std::array{128, 100, 27}}) {
    const Metric metric(dim, random_metric(width, 11));
    Matrix<float> x = gaussian_matrix(kVectors, dim, 12);
    x(3, 0) = std::numeric_limits<float>::infinity();
    x(4, 0) = std::nanf("");
    x(5, 0) = 1e38f;
    std::fill_n(x.row(6), dim, 0.0f);
    std::vector<int16_t> start(static_cast<size_t>(kVectors * dim)), expected;
    std::vector<float> start_gains(kVectors), gains;
    const auto refine = [&](Isa isa, std::vector<int16_t>& y, std::vector<float>& to) {
      y = start;
      to = start_gains;
      pvq_refine(isa)(metric.of, x.data(), kVectors, y.data(), to.data());
    };
    pvq_search_ref(x.data(), kVectors, dim, pulses, start.data(), start_gains.data());
    refine(Isa::kRef, expected, gains);
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!host_has(isa)) continue;
      std::vector<int16_t> got;
      std::vector<float> got_gains;
      refine(isa, got, got_gains);
      EXPECT_EQ(got, expected) << isa_name(isa) << ", dim " << dim;
      EXPECT_EQ(got_gains, gains) << isa_name(isa) << ", dim " << dim;
    }
  }
}

TEST(Pvq, BlocksAreCodedInTheMetricThatIsPassed) {
  const char* text = "pvq(dim=64, pulses=42, gain_bits=2)";
  for (const int width : {64, 40}) {
    const Matrix<float> w = gaussian_matrix(40, width, 13);
    Matrix<float> even(width, width), weights = even;
    for (int i = 0; i < width; ++i) {
      even(i, i) = 0.3f;
      weights(i, i) = std::exp2(static_cast<float>(i % 7) - 3);
    }
    const auto ratio = [&](const Matrix<float>& metric) {
      return block_error(text, w, metric, true) / block_error(text, w, metric, false);
    };
    EXPECT_LT(ratio(weights), 0.9) << width;
    EXPECT_LT(ratio(random_metric(width, 14)), 0.6) << width;
    EXPECT_EQ(ratio(even), 1) << width;
  }
}

// Errors computed apart from this source: by search of all points for dim 8, pulses 5, for the
// others by a search pulse by pulse with moves.
TEST(Pvq, GaussianErrorsAreThoseOfPyramids) {
  struct Row {
    int dim, pulses, gain_bits;
    double mse;
  };
  const Row rows[] = {
      {8, 5, 2, .1224},    {8, 8, 2, .0590},   {16, 7, 2, .1862},   {16, 10, 2, .1130},
      {16, 15, 2, .0593},  {16, 23, 3, .0266}, {16, 51, 4, .00575}, {32, 6, 3, .4132},
      {32, 13, 2, .1964},  {32, 20, 2, .1080}, {32, 31, 3, .0517},  {32, 46, 3, .0253},
      {32, 98, 4, .00588}, {64, 13, 3, .3824}, {64, 27, 3, .1827},  {64, 41, 2, .1014},
      {128, 27, 3, .3679},
  };
  const Matrix<float> w = gaussian_matrix(128, 4096, 4);
  for (const Row& row : rows) {
    const std::string text =
        fmt::format("pvq(dim={}, pulses={}, gain_bits={})", row.dim, row.pulses, row.gain_bits);
    EXPECT_NEAR(coding_error(text, w) / row.mse, 1, 0.01) << text;
  }
}

TEST(Pvq, ManyPulsesGainSixDecibelsForEachBitOfDirection) {
  const Matrix<float> w = gaussian_matrix(32, 1024, 5);
  const double at_40 = coding_error("pvq(dim=8, pulses=40, gain_bits=8)", w);
  const double at_160 = coding_error("pvq(dim=8, pulses=160, gain_bits=8)", w);
  const auto log2_n = [](int pulses) {
    return std::log2(static_cast<double>(PvqIndex::counts(8, pulses).back()));
  };
  const double bits = (log2_n(160) - log2_n(40)) / 7;
  EXPECT_NEAR(std::log2(at_40 / at_160) / 2 / bits, 1, 0.03);
}

TEST(Pvq, AnyRateIsMetFromBelowAndErrorFallsWithIt) {
  const Matrix<float> w = gaussian_matrix(64, 2048, 6);
  double last = 1;
  for (const double bits : {0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0}) {
    const std::string text = fmt::format("pvq({})", bits);
    const auto codec = make_codec(text);
    ASSERT_TRUE(codec) << text;
    const double used = (*codec)->claim().bits;
    EXPECT_LE(used, bits);
    EXPECT_GT(used, bits - 0.13);
    const double error = coding_error(text, w);
    EXPECT_LT(error, 0.93 * last);
    EXPECT_GT(error, std::exp2(-2 * used)) << "Shannon's bound";
    EXPECT_LT(error, 1.75 * std::exp2(-2 * used)) << "2.4 dB from it";
    last = error;
  }
}

TEST(Pvq, TheTextNamesWhatWasChosen) {
  EXPECT_EQ((*make_codec("pvq"))->spec(), (*make_codec("pvq(2)"))->spec());
  EXPECT_EQ((*make_codec("pvq(2)"))->spec(), "pvq(dim=64, pulses=42, gain_bits=2)");
  EXPECT_EQ((*make_codec("pvq(2, dim=16)"))->block_cols(), 16);
  EXPECT_FALSE(make_codec("pvq(2, pulses=5)"));
  EXPECT_FALSE(make_codec("pvq(dim=64, pulses=200, gain_bits=2)"));
  EXPECT_FALSE(make_codec("pvq(0.05)"));
  EXPECT_FALSE(make_codec("pvq(pulses=5)"));
}

}  // namespace
}  // namespace quern
