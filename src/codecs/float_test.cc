// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "base/float_types.h"
#include "codecs/scalar_table.h"
#include "codecs/small_float.h"
#include "codecs/test_matrices.h"
#include "formats/float8.h"

namespace quern {
namespace {

TEST(Float, EightBitFloatsAreThoseOfTheSpecification) {
  const std::vector<float> e4m3 = small_float_levels(4, 3), e5m2 = small_float_levels(5, 2);
  for (int code = 0; code < 256; ++code) {
    const auto same = [&](float a, float b) {
      return std::isnan(a) ? std::isnan(b) : std::bit_cast<int>(a) == std::bit_cast<int>(b);
    };
    const auto byte = static_cast<uint8_t>(code);
    EXPECT_TRUE(same(f8e4m3_to_float(byte), e4m3[byte])) << code;
    EXPECT_TRUE(same(f8e5m2_to_float(byte), e5m2[byte])) << code;
  }
}

// The bits of a small float, placed in a half, are that float over a power of two.
TEST(Float, SixBitFloatsAreShiftedHalves) {
  const std::vector<float> e3m2 = small_float_levels(3, 2), e2m2 = small_float_levels(2, 2);
  for (size_t code = 0; code < 64; ++code) {
    const auto half = static_cast<uint16_t>((code & 32) << 10 | (code & 31) << 8);
    EXPECT_EQ(e3m2[code], f16_to_float(half) * 0x1p12f) << code;
  }
  for (size_t code = 0; code < 32; ++code) {
    const auto half = static_cast<uint16_t>((code & 16) << 11 | (code & 15) << 8);
    EXPECT_EQ(e2m2[code], f16_to_float(half) * 0x1p14f) << code;
  }
}

TEST(Float, EndsAndStepsAreThePublishedOnes) {
  const struct {
    int exponent, mantissa;
    float highest, subnormal;
  } rows[] = {{4, 3, 448, 0x1p-9f}, {5, 2, 57344, 0x1p-16f}, {3, 2, 28, 0.0625f},
              {2, 3, 7.5f, 0.125f}, {2, 1, 6, 0.5f},         {2, 2, 7, 0.25f},
              {2, 0, 4, 1},         {3, 0, 16, 0.25f}};
  for (const auto& row : rows) {
    const std::vector<float> levels = small_float_levels(row.exponent, row.mantissa);
    const ScalarTable table(1 + row.exponent + row.mantissa, levels);
    EXPECT_EQ(table.highest(), row.highest);
    EXPECT_EQ(table.lowest(), -row.highest);
    EXPECT_EQ(levels[1], row.subnormal);
    EXPECT_EQ(table.nearest(0), 0u) << "not minus zero";
  }
}

TEST(Float, TiesGoToTheEvenMantissaAndTheHighestSaturates) {
  for (const auto& [exponent, mantissa] : {std::pair{2, 1}, {3, 2}, {2, 3}, {4, 3}, {5, 2}}) {
    const std::vector<float> levels = small_float_levels(exponent, mantissa);
    const ScalarTable table(1 + exponent + mantissa, levels);
    for (unsigned code = 0; levels[code] < table.highest(); ++code) {
      const float middle = (levels[code] + levels[code + 1]) / 2;  // exact
      const unsigned even = code + code % 2;
      EXPECT_EQ(table.level(table.nearest(middle)), levels[even]);
      EXPECT_EQ(table.level(table.nearest(-middle)), -levels[even]);
      EXPECT_EQ(table.nearest(std::nextafter(middle, 0.0f)), code);
      EXPECT_EQ(table.nearest(std::nextafter(middle, 1e9f)), code + 1);
    }
    EXPECT_EQ(table.level(table.nearest(1e30f)), table.highest());
  }
}

TEST(Float, MicroscalingKeepsBlocksOfItsOwnValues) {
  Random random(3);
  for (const char* element : {"e2m1", "e3m2", "e2m3", "e4m3", "e5m2"}) {
    const auto codec = *make_codec(fmt::format("float({}, group=32, scale=e8m0)", element));
    const std::vector<float> levels = small_float_levels(element[1] - '0', element[3] - '0');
    Matrix<float> w(8, 64);
    for (int64_t i = 0; i < 8 * 64; ++i) {
      float value = NAN;
      while (!std::isfinite(value)) value = levels[random.below(levels.size())];
      w.data()[i] = value * 0.25f;
    }
    const ScalarTable table(static_cast<int>(std::bit_width(levels.size())) - 1, levels);
    for (int64_t i = 0; i < 8; ++i) w(i, 3) = w(i, 40) = table.highest() * 0.25f;
    EXPECT_EQ(decode_matrix(*codec, code_matrix(*codec, w)), w) << element;
  }
}

TEST(Float, MicroscalingShiftsItsScaleWithTheWeights) {
  const auto codec = *make_codec("float(e2m1, group=32, scale=e8m0)");
  const Matrix<float> w = gaussian_matrix(4, 128, 5);
  Matrix<float> scaled(4, 128);
  for (int64_t i = 0; i < 4 * 128; ++i) scaled.data()[i] = w.data()[i] * 0x1p-7f;
  const CodedMatrix a = code_matrix(*codec, w), b = code_matrix(*codec, scaled);
  EXPECT_EQ(0, std::memcmp(a.plane(0).data(), b.plane(0).data(), a.plane(0).size()));
  for (size_t g = 0; g < a.plane(1).size(); ++g) {
    const int exponent = std::to_integer<int>(a.plane(1)[g]);
    EXPECT_EQ(exponent - 7, std::to_integer<int>(b.plane(1)[g]));
    float largest = 0;
    for (size_t j = 32 * g; j < 32 * (g + 1); ++j) {
      largest = std::max(largest, std::abs(w.data()[j]));
    }
    EXPECT_EQ(exponent, std::ilogb(largest) - 2 + 127) << "emax of e2m1 is 2";
  }
}

TEST(Float, NvfpScalesReachTheEndOfTheirRange) {
  const auto codec = *make_codec("float(e2m1, group=16, scale=e4m3)");
  const Matrix<float> w = gaussian_matrix(16, 64, 6);
  const CodedMatrix codes = code_matrix(*codec, w);
  float largest = 0, unit;
  for (int64_t i = 0; i < 16 * 64; ++i) largest = std::max(largest, std::abs(w.data()[i]));
  std::memcpy(&unit, codes.plane(2).data(), 4);
  EXPECT_EQ(unit, static_cast<float>(static_cast<double>(largest / 6) / 448));
  std::set<int> scales;
  for (const std::byte scale : codes.plane(1)) scales.insert(std::to_integer<int>(scale));
  EXPECT_EQ(*scales.rbegin(), 0x7e) << "448";
  EXPECT_GT(*scales.begin(), 0);
}

TEST(Float, SixBitCodesAreSplitInFourAndTwo) {
  const auto codec = *make_codec("float(e3m2, group=0)");
  Matrix<float> w(1, 4);
  const float values[4] = {28, -28, 0.0625f, -2.5f};  // codes 31, 63, 1, 49 at a scale of 16
  std::copy(values, values + 4, w.data());
  const CodedMatrix codes = code_matrix(*codec, w);
  EXPECT_EQ(codes.specs()[1], (PlaneSpec{"high", DType::kU8, {1, 1}}));
  EXPECT_EQ(std::to_integer<int>(codes.plane(0)[0]), 0xff);
  EXPECT_EQ(std::to_integer<int>(codes.plane(0)[1]), 0x11);
  EXPECT_EQ(std::to_integer<int>(codes.plane(1)[0]), 0b11'00'11'01);
  EXPECT_EQ(decode_matrix(*codec, codes), w);
}

TEST(Float, TwoSidesReachBothEnds) {
  const auto one = *make_codec("float(e2m1, group=32)");
  const auto two = *make_codec("float(e2m1, group=32, sides=2)");
  Matrix<float> w = gaussian_matrix(8, 32, 7);
  for (int64_t i = 0; i < 8; ++i) w(i, 5) = 6, w(i, 9) = -4.5f;  // halves hold these scales
  const Matrix<float> w_hat = decode_matrix(*two, code_matrix(*two, w));
  for (int64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(w_hat(i, 5), 6);
    EXPECT_EQ(w_hat(i, 9), -4.5f);
    for (int64_t j = 0; j < 32; ++j) EXPECT_GE(w(i, j) * w_hat(i, j), 0) << "the sign is kept";
  }
  for (int64_t i = 0; i < 8; ++i) w(i, 9) = -6;
  EXPECT_EQ(decode_matrix(*two, code_matrix(*two, w)), decode_matrix(*one, code_matrix(*one, w)));
  for (int64_t i = 0; i < 8 * 32; ++i) w.data()[i] = -std::abs(w.data()[i]);
  const CodedMatrix negative = code_matrix(*two, w);
  EXPECT_EQ(decode_matrix(*two, negative), decode_matrix(*one, code_matrix(*one, w)));
  uint16_t positive_scale;
  std::memcpy(&positive_scale, negative.plane(1).data(), 2);
  EXPECT_EQ(positive_scale, 0) << "a side without weights";
}

// A million draws: the standard error of a mean squared error is 0.2 % or less.
TEST(Float, ErrorOnAGaussianIsTheKnownOne) {
  const Matrix<float> w = gaussian_matrix(256, 4096, 8);
  const std::pair<const char*, double> rows[] = {
      {"float(e2m1, group=32, scale=e8m0)", 0.01323},
      {"float(e2m1, group=32, scale=e8m0, clip=search)", 0.01245},
      {"float(e2m1, group=16, scale=e4m3)", 0.00904},
      {"float(e3m2, group=32, scale=e8m0)", 0.00291},
      {"float(e5m2, group=32, scale=e8m0)", 0.00291},
      {"float(e2m3, group=32, scale=e8m0)", 0.000808},
      {"float(e3m2, group=0)", 0.00278},
      {"float(e5m2, group=0)", 0.00278},
      {"float(e4m3, group=0)", 0.00070},
      {"float(e2m1)", 0.01186},
      {"float(e2m1, sides=2)", 0.01116},
  };
  for (const auto& [text, expected] : rows) {
    EXPECT_NEAR(coding_error(text, w) / expected, 1, 0.01) << text;
  }
}

TEST(Float, RatesAreWeighed) {
  EXPECT_EQ(coded_bits("float(e2m1, group=32, scale=e8m0)", 64, 4096), 4.25);
  EXPECT_EQ(coded_bits("float(e3m2, group=32, scale=e8m0)", 64, 4096), 6.25);
  EXPECT_EQ(coded_bits("float(e3m2, group=0)", 64, 4096), 6 + 16.0 / 4096);
  EXPECT_EQ(coded_bits("float(e2m1, group=16, scale=e4m3)", 64, 4096), 4.5 + 32.0 / (64 * 4096));
  EXPECT_EQ(coded_bits("float(e2m1, sides=2)", 64, 4096), 4.25);
}

}  // namespace
}  // namespace quern
