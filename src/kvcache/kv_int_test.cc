// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "kvcache/kv_testing.h"

namespace quern {
namespace {

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - y[i], 2);
    energy += static_cast<double>(x[i]) * x[i];
  }
  return error / energy;
}

// The table of the cards: relative error of a Gaussian by minimum and maximum of a group.
TEST(KvInt, ErrorsOnAGaussianAreThoseOfTheory) {
  const struct {
    const char* text;
    double error;
  } kExpected[] = {{"int(2, group=32)", .1545},   {"int(3, group=32)", .0281},
                   {"int(4, group=32)", .0061},   {"int(2, group=128)", .251},
                   {"int(3, group=128)", .0456},  {"int(4, group=128)", .0100},
                   {"int(2, per=channel)", .1545}};
  for (const auto& [text, expected] : kExpected) {
    const auto codec = codec_of(text);
    for (const KvSide side : kSides) {
      double error = 0;
      for (uint64_t seed = 0; seed < 4; ++seed) {
        const std::vector<float> x = gaussian_page(128, seed);
        error += relative_error(x, coded(*codec, side, 128, x)) / 4;
      }
      EXPECT_NEAR(error, expected, .04 * expected) << text;
    }
  }
}

// A step is at most half a scale and the rounding of two halves away.
TEST(KvInt, NoNumberIsOffByMoreThanHalfAStep) {
  const auto codec = codec_of("int(4, per=channel)");
  const std::vector<float> x = gaussian_page(64, 1);
  const std::vector<float> y = coded(*codec, KvSide::kKeys, 64, x);
  for (int64_t first = 0; first < 64 * kKeyBlock; first += 32) {
    const auto [low, high] = std::minmax_element(x.begin() + first, x.begin() + first + 32);
    const double step = (*high - *low) / 15.0;
    const double rounding = 0x1p-11 * (std::fabs(*low) + 16 * step);
    for (int64_t i = first; i < first + 32; ++i) {
      EXPECT_LE(std::fabs(x[static_cast<size_t>(i)] - y[static_cast<size_t>(i)]),
                step / 2 + 2 * rounding);
    }
  }
}

TEST(KvInt, WhatIsConstantOrEightBitsWideComesBack) {
  std::vector<float> x(64 * kKeyBlock, -3.5f);
  for (const char* text : {"int(1)", "int(2, per=channel)", "int(8)"}) {
    for (const KvSide side : kSides) EXPECT_EQ(coded(*codec_of(text), side, 64, x), x) << text;
  }
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 16 * 17);  // 0, 17, ... 255
  EXPECT_EQ(coded(*codec_of("int(8, group=64)"), KvSide::kValues, 64, x), x);
}

// Keys with a few large channels: a scale per channel keeps them apart.
TEST(KvInt, ChannelsSuitKeysWithLargeChannels) {
  std::vector<float> x = gaussian_page(64, 6);
  for (int64_t p = 0; p < kKeyBlock; ++p) {
    for (const int64_t c : {3, 40}) x[static_cast<size_t>(c * kKeyBlock + p)] *= 20;
  }
  // In energy the large channels weigh most; what the others lose shows in them alone.
  double small_by_channel = 0, small_by_token = 0;
  const std::vector<float> a = coded(*codec_of("int(2, per=channel)"), KvSide::kKeys, 64, x);
  const std::vector<float> b = coded(*codec_of("int(2)"), KvSide::kKeys, 64, x);
  for (int64_t i = 0; i < 3 * kKeyBlock; ++i) {
    const auto at = static_cast<size_t>(i);
    small_by_channel += std::pow(x[at] - a[at], 2);
    small_by_token += std::pow(x[at] - b[at], 2);
  }
  EXPECT_LT(10 * small_by_channel, small_by_token);
}

}  // namespace
}  // namespace quern
