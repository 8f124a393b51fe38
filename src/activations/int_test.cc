// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "activations/act_quantizer.h"
#include "gaussian.h"

namespace quern {
namespace {

std::vector<float> rounded(const std::string& text, std::span<const float> x,
                           std::span<const float> ranges = {}) {
  std::vector<float> y(x.size());
  (*make_act(text))->values(x.data(), static_cast<int64_t>(x.size()), ranges, y.data());
  return y;
}

std::vector<float> gaussian_row(int64_t n, uint64_t seed) {
  const Matrix<float> x = gaussian(1, n, seed);
  return {x.row(0), x.row(0) + n};
}

float largest(std::span<const float> x) {
  float most = 0;
  for (const float value : x) most = std::max(most, std::abs(value));
  return most;
}

TEST(IntAct, LevelsAreMultiplesOfTheLargestOverQ) {
  const std::vector<float> x = gaussian_row(500, 1);
  for (int bits = 3; bits <= 8; ++bits) {
    const std::vector<float> y = rounded(fmt::format("int({})", bits), x);
    const int most = (1 << (bits - 1)) - 1;
    const float step = largest(x) / static_cast<float>(most);
    std::set<int> seen;
    for (size_t j = 0; j < x.size(); ++j) {
      const float level = std::nearbyint(y[j] / step);
      EXPECT_EQ(y[j], step * level);
      EXPECT_LE(std::abs(level), static_cast<float>(most));
      EXPECT_LE(std::abs(y[j] - x[j]), 0.501f * step);
      seen.insert(static_cast<int>(level));
    }
    EXPECT_TRUE(seen.contains(most) || seen.contains(-most));
    EXPECT_LE(seen.size(), static_cast<size_t>(2 * most + 1));
  }
}

TEST(IntAct, AClipRatioScalesTheStepAndClampsTheEnds) {
  const std::vector<float> x = gaussian_row(500, 2);
  const float end = 0.75f * largest(x), step = end / 7;
  const std::vector<float> y = rounded("int(4, clip=0.75)", x);
  for (size_t j = 0; j < x.size(); ++j) {
    EXPECT_LE(std::abs(y[j]), end * 1.000001f);
    if (std::abs(x[j]) <= end) {
      EXPECT_LE(std::abs(y[j] - x[j]), 0.501f * step);
    } else {
      EXPECT_EQ(y[j], std::copysign(7 * step, x[j]));
    }
  }
}

TEST(IntAct, AZeroPointSpendsAllLevelsOnOneSide) {
  std::vector<float> x = gaussian_row(400, 3);
  for (float& value : x) value = std::abs(value);
  const float step = largest(x) / 15;
  const std::vector<float> y = rounded("int(4, sym=false)", x);
  for (size_t j = 0; j < x.size(); ++j) EXPECT_LE(std::abs(y[j] - x[j]), 0.501f * step);
  // A zero is exact whatever the range.
  x[5] = 0;
  x[6] = -0.3f;
  EXPECT_EQ(rounded("int(4, sym=false)", x)[5], 0);
}

TEST(IntAct, GroupsHaveScalesOfTheirOwn) {
  std::vector<float> x = gaussian_row(192, 4);
  for (size_t j = 64; j < 128; ++j) x[j] *= 1000;
  const std::vector<float> y = rounded("int(6, per=group, group=64)", x);
  for (size_t g = 0; g < 3; ++g) {
    const std::span<const float> part(x.data() + 64 * g, 64);
    EXPECT_EQ(std::vector<float>(y.begin() + 64 * static_cast<int>(g),
                                 y.begin() + 64 * static_cast<int>(g + 1)),
              rounded("int(6)", part));
  }
}

TEST(IntAct, AStaticScaleIsThatOfCalibrationWhateverTheRow) {
  const std::vector<float> low(100, -2.0f), high(100, 3.0f);
  const auto act = *make_act("int(8, per=tensor, scale=static)");
  const std::vector<float> ranges = act->ranges(low, high);
  EXPECT_EQ(ranges, std::vector<float>{3.0f});
  const float step = 3.0f / 127;
  for (const float factor : {0.1f, 1.0f, 10.0f}) {
    std::vector<float> x = gaussian_row(100, 5);
    for (float& value : x) value *= factor;
    const std::vector<float> y = rounded("int(8, per=tensor, scale=static)", x, ranges);
    for (size_t j = 0; j < x.size(); ++j) {
      const float held = std::min(std::max(x[j], -3.0f), 3.0f);
      EXPECT_LE(std::abs(y[j] - held), 0.501f * step);
    }
  }
  const auto both = *make_act("int(7, per=tensor, sym=false, scale=static)");
  EXPECT_EQ(both->ranges(low, high), (std::vector<float>{-2.0f, 3.0f}));
}

TEST(IntAct, RangesOfGroupsAreThoseOfTheirColumns) {
  const auto act = *make_act("int(5, per=group, group=16, scale=static)");
  std::vector<float> low(40, -1.0f), high(40, 0.5f);
  high[20] = 4;
  low[39] = -7;
  EXPECT_EQ(act->n_ranges(40), 3);
  EXPECT_EQ(act->ranges(low, high), (std::vector<float>{1, 4, 7}));
}

TEST(IntAct, RefusesWhatCannotBeExecuted) {
  const std::pair<std::string, std::string> refusals[] = {
      {"int(2)", "3..8"},
      {"int(9)", "3..8"},
      {"int(8, sym=false)", "3 to 7 bits"},
      {"int(8, per=tensor)", "scale=static"},
      {"int(8, scale=static)", "per=tensor"},
      {"int(4, per=group, group=40)", "multiple of 16"},
      {"int(4, clip=0)", "clip"},
  };
  for (const auto& [text, expected] : refusals) {
    const auto act = make_act(text);
    ASSERT_FALSE(act.has_value()) << text;
    EXPECT_EQ(act.error().kind, ErrorKind::kUsage);
    EXPECT_NE(act.error().message.find(expected), std::string::npos) << act.error().message;
  }
  EXPECT_FALSE((*make_act("int(4, per=group, group=32)"))->check(256, 64));
  EXPECT_TRUE((*make_act("int(4, per=group, group=128)"))->check(256, 64));
  EXPECT_TRUE((*make_act("int(4, per=group, group=128)"))->check(96, 64)) << "one group is a row";
}

}  // namespace
}  // namespace quern
