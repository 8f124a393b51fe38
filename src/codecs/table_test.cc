// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "base/float_types.h"
#include "codecs/bit_stream.h"
#include "codecs/level_tables.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Integrals of a unit Gaussian's density, its first and its second moment from a to b.
std::array<double, 3> moments(double a, double b) {
  const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * kPi); };
  const auto below = [](double x) { return std::erfc(-x / std::sqrt(2)) / 2; };
  const auto x_density = [&](double x) { return std::isfinite(x) ? x * density(x) : 0; };
  const double mass = below(b) - below(a);
  return {mass, density(a) - density(b), mass - x_density(b) + x_density(a)};
}

// Of a quantizer with cells between borders; n - 1 borders for n levels.
double gaussian_error(std::span<const double> levels, std::span<const double> borders) {
  double sum = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const auto m = moments(i == 0 ? -INFINITY : borders[i - 1],
                           i + 1 == levels.size() ? INFINITY : borders[i]);
    sum += m[2] - 2 * levels[i] * m[1] + levels[i] * levels[i] * m[0];
  }
  return sum;
}

std::vector<double> midpoints(std::span<const double> levels) {
  std::vector<double> middle;
  for (size_t i = 0; i + 1 < levels.size(); ++i) middle.push_back((levels[i] + levels[i + 1]) / 2);
  return middle;
}

std::vector<double> in_double(std::span<const float> levels, double scale = 1) {
  std::vector<double> out;
  for (const float level : levels) out.push_back(scale * level);
  return out;
}

TEST(Table, LloydLevelsAreTheCentroidsOfTheirCells) {
  const double errors[8] = {0.36338,   0.117482,  0.034548,  0.009501,
                            0.0025047, 6.4424e-4, 1.6348e-4, 4.1185e-5};
  for (size_t bits = 1; bits <= 8; ++bits) {
    const std::vector<double> levels = in_double(kLloydLevels[bits - 1]);
    ASSERT_EQ(levels.size(), size_t{1} << bits);
    const std::vector<double> borders = midpoints(levels);
    for (size_t i = levels.size() / 2; i < levels.size(); ++i) {
      const auto m = moments(borders[i - 1], i + 1 == levels.size() ? INFINITY : borders[i]);
      EXPECT_NEAR(m[1] / m[0], levels[i], 1e-6 * levels[i] + 1e-8) << bits;
      EXPECT_EQ(levels[i], -levels[levels.size() - 1 - i]);
    }
    EXPECT_NEAR(gaussian_error(levels, borders) / errors[bits - 1], 1, 1e-4) << bits;
  }
}

// In the compander's own cells, as CVXQ codes, and to the nearest level, as is done here.
TEST(Table, LaplaceLevelsAreTheCompanders) {
  const double errors[4] = {0.3634, 0.1427, 0.0537, 0.0134};
  for (size_t bits = 1; bits <= 4; ++bits) {
    const auto levels = kLaplaceLevels[bits - 1];
    const auto n = static_cast<double>(levels.size());
    std::vector<double> borders;
    for (double q = 1; q < n; ++q) {
      const double u = q / n;
      borders.push_back(3 / std::sqrt(2) * (u < 0.5 ? std::log(2 * u) : -std::log(2 - 2 * u)));
    }
    double best = 1, best_nearest = 1;
    for (double scale = 0.3; scale < 1.2; scale += 0.0025) {
      std::vector<double> scaled = borders;
      for (double& border : scaled) border *= scale;
      const std::vector<double> own = in_double(levels, scale);
      best = std::min(best, gaussian_error(own, scaled));
      best_nearest = std::min(best_nearest, gaussian_error(own, midpoints(own)));
    }
    EXPECT_NEAR(best / errors[bits - 1], 1, 0.005) << bits;
    EXPECT_LE(best_nearest, best);
    for (size_t q = levels.size() / 2; q < levels.size(); ++q) {
      const double u = (static_cast<double>(q) + 0.5) / n;
      EXPECT_NEAR(levels[q], -3 / std::sqrt(2) * std::log(2 - 2 * u), 1e-6);
      EXPECT_EQ(levels[q], -levels[levels.size() - 1 - q]);
    }
  }
}

TEST(Table, NfLevelsAreQuantilesWithAZero) {
  const auto below = [](double x) { return std::erfc(-x / std::sqrt(2)) / 2; };
  for (size_t bits = 2; bits <= 8; ++bits) {
    const auto levels = kNfLevels[bits - 1];
    const size_t half = levels.size() / 2;
    ASSERT_EQ(levels.size(), size_t{1} << bits);
    EXPECT_EQ(levels[0], -1);
    EXPECT_EQ(levels[half - 1], 0);
    EXPECT_EQ(levels.back(), 1);
    // Equal steps of probability on each side, once the ends are put back in their place.
    const double offset =
        1 -
        (1.0 / (4.0 * static_cast<double>(half)) + 1.0 / (4.0 * static_cast<double>(half) - 2)) / 2;
    double end = 0;
    for (double step = 8; step > 1e-12; step /= 2) end += below(end + step) <= offset ? step : 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      const double distance = std::abs(static_cast<double>(i) - static_cast<double>(half - 1)) /
                              static_cast<double>(i < half ? half - 1 : half);
      const double expected = 0.5 + (offset - 0.5) * distance;
      EXPECT_NEAR(below(std::abs(levels[i]) * end), expected, 1e-6) << bits << " " << i;
    }
  }
}

TEST(Table, ErrorOnAGaussianIsTheKnownOne) {
  const Matrix<float> w = gaussian_matrix(256, 4096, 1);
  const std::pair<const char*, double> rows[] = {
      {"table(nf, 4)", 0.00845},
      {"table(nf, 4, group=32)", 0.0076},
      {"table(nf, 4, group=128)", 0.00914},
      {"table(nf, 3)", 0.0389},
      {"table(nf, 3, group=128)", 0.0439},
      {"table(nf, 4, sides=2)", 0.00762},
      {"table(nf, 4, group=128, sides=2)", 0.00846},
      {"table(nf, 3, sides=2)", 0.0335},
      {"table(nf, 3, group=128, sides=2)", 0.0388},
      {"table(nf, 4, shift=median)", 0.00839},
      {"table(lloyd, 1, group=0)", 0.36338},
      {"table(lloyd, 2, group=0)", 0.11748},
      {"table(lloyd, 3, group=0)", 0.03455},
      {"table(lloyd, 4, group=0)", 0.00950},
      {"table(lloyd, 5, group=0)", 0.00250},
  };
  for (const auto& [text, expected] : rows) {
    EXPECT_NEAR(coding_error(text, w) / expected, 1, 0.01) << text;
  }
}

TEST(Table, DoubleQuantisationCostsLittleAndSavesHalfABit) {
  const Matrix<float> w = gaussian_matrix(64, 4096, 2);
  EXPECT_NEAR(coding_error("table(nf, 4, scale=nested)", w) / coding_error("table(nf, 4)", w), 1,
              0.01);
  EXPECT_NEAR(coded_bits("table(nf, 4, scale=nested)", 4096, 4096), 4.127, 5e-4);
  EXPECT_NEAR(coded_bits("table(nf, 4, shift=entropy, scale=nested)", 4096, 4096), 4.254, 5e-4);
  EXPECT_EQ(coded_bits("table(nf, 4)", 4096, 4096), 4.25);
}

TEST(Table, NestedScalesNeedALevelAtZero) {
  const auto codec = make_codec("table(lloyd, 4, scale=nested)");
  ASSERT_FALSE(codec);
  EXPECT_NE(codec.error().message.find("zero"), std::string::npos);
  EXPECT_FALSE(make_codec("table(nf, 1)"));
}

TEST(Table, MoreGroupsThanCanBeCountedAreDeclined) {
  const auto codec = *make_codec("table(nf, 4, group=1, scale=nested, sides=2)");
  EXPECT_FALSE(codec->planes(int64_t{1} << 31, int64_t{1} << 31));
  EXPECT_TRUE(codec->planes(int64_t{1} << 31, 1));
}

TEST(Table, TheLargestMagnitudeIsExactUpToItsScale) {
  const Matrix<float> w = gaussian_matrix(16, 64, 3);
  const auto codec = *make_codec("table(nf, 4)");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t i = 0; i < w.rows(); ++i) {
    int64_t largest = 0;
    for (int64_t j = 0; j < 64; ++j) {
      if (std::abs(w(i, j)) > std::abs(w(i, largest))) largest = j;
    }
    const float half = f16_to_float(float_to_f16(std::abs(w(i, largest))));
    EXPECT_EQ(std::abs(w_hat(i, largest)), half);
  }
}

// Entropy of the codes of each row of one group, averaged.
double mean_entropy(const char* text, const Matrix<float>& w) {
  const auto codec = *make_codec(text);
  const CodedMatrix codes = code_matrix(*codec, w);
  const auto* stream = reinterpret_cast<const uint8_t*>(codes.plane(0).data());
  double sum = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    std::array<int, 16> counts{};
    for (int64_t j = 0; j < w.cols(); ++j) ++counts[get_code(stream, i * w.cols() + j, 4)];
    for (const int count : counts) {
      const double share = static_cast<double>(count) / static_cast<double>(w.cols());
      if (count > 0) sum -= share * std::log2(share);
    }
  }
  return sum / static_cast<double>(w.rows());
}

TEST(Table, EntropyRisesWithTheCalibrationConstant) {
  const Matrix<float> w = gaussian_matrix(2048, 64, 4);
  EXPECT_NEAR(mean_entropy("table(nf, 4)", w), 3.687, 0.01);
  EXPECT_NEAR(mean_entropy("table(nf, 4, shift=median)", w), 3.690, 0.01);
  EXPECT_NEAR(mean_entropy("table(nf, 4, shift=entropy)", w), 3.762, 0.01);
  EXPECT_NEAR(coding_error("table(nf, 4, shift=entropy)", w) / 0.00853, 1, 0.02)
      << "and the error does not fall";
}

TEST(Table, AConstantAddedToAGroupMovesItsShiftOnly) {
  Random random(5);
  Matrix<float> w(8, 64), moved(8, 64);  // sums of these are exact, in halves too
  for (int64_t i = 0; i < 8 * 64; ++i) {
    w.data()[i] = static_cast<float>(random.below(513)) / 256 - 1;
    moved.data()[i] = w.data()[i] + 0.25f;
  }
  const auto codec = *make_codec("table(nf, 4, shift=median)");
  const CodedMatrix a = code_matrix(*codec, w), b = code_matrix(*codec, moved);
  EXPECT_EQ(0, std::memcmp(a.plane(0).data(), b.plane(0).data(), a.plane(0).size()));
  EXPECT_EQ(0, std::memcmp(a.plane(1).data(), b.plane(1).data(), a.plane(1).size()));
  for (size_t g = 0; g < 8; ++g) {
    uint16_t before, after;
    std::memcpy(&before, a.plane(2).data() + 2 * g, 2);
    std::memcpy(&after, b.plane(2).data() + 2 * g, 2);
    EXPECT_EQ(f16_to_float(after), f16_to_float(before) + 0.25f);
  }
}

TEST(Table, TheSearchNeverLosesByItsOwnMeasure) {
  const Matrix<float> w = gaussian_matrix(16, 512, 6);
  for (const char* base : {"nf, 3", "nf, 4", "lloyd, 2", "lloyd, 4", "laplace, 3"}) {
    for (const int sides : {1, 2}) {
      const std::string head = fmt::format("table({}, sides={}", base, sides);
      EXPECT_LE(coding_error(head + ", clip=search)", w), coding_error(head + ")", w)) << head;
    }
  }
}

TEST(Table, ImportanceOfColumnsMovesTheSearch) {
  const Matrix<float> w = gaussian_matrix(64, 64, 8);
  std::vector<float> weight(64, 0.01f);
  for (size_t j = 0; j < 16; ++j) weight[j] = 10;
  for (const char* text : {"table(nf, 3, clip=search)", "table(lloyd, 2, clip=search, sides=2)",
                           "float(e2m1, group=64, clip=search, norm=2.4)"}) {
    EXPECT_LT(weighted_error(text, w, weight, true), 0.95 * weighted_error(text, w, weight, false))
        << text;
  }
}

TEST(Table, ErrorFallsWithEveryBit) {
  const Matrix<float> w = gaussian_matrix(16, 1024, 7);
  for (const char* levels : {"nf", "lloyd", "laplace"}) {
    double last = 1e9;
    for (int bits = 2; bits <= 7; ++bits) {
      const double error = coding_error(fmt::format("table({}, {}, clip=search)", levels, bits), w);
      EXPECT_LT(error, last / 2) << levels << bits;
      last = error;
    }
  }
}

}  // namespace
}  // namespace quern
