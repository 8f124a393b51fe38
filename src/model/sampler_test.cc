// SPDX-License-Identifier: Apache-2.0
#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "model/generate.h"

namespace quern {
namespace {

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, 2.0f, -5.0f};

std::map<int32_t, int> draw(SamplerOptions options, int n = 20000) {
  Sampler sampler(options);
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(kLogits)];
  return counts;
}

TEST(Sampler, ZeroTemperatureTakesTheFirstOfTheLikeliest) {
  SamplerOptions options;
  options.temperature = 0;
  EXPECT_EQ(draw(options, 10), (std::map<int32_t, int>{{1, 10}}));
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  SamplerOptions options{.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0};
  double total = 0;
  for (const float logit : kLogits) total += std::exp(logit);
  for (const auto& [token, count] : draw(options)) {
    const double share = std::exp(kLogits[static_cast<size_t>(token)]) / total;
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(count, 20000 * share, 5 * std::sqrt(20000 * share * (1 - share)) + 1) << token;
  }
}

TEST(Sampler, FiltersKeepWhatTheySay) {
  EXPECT_EQ(draw({.temperature = 1, .top_k = 2, .top_p = 1, .min_p = 0}).size(), 2u);
  EXPECT_EQ(draw({.temperature = 1, .top_k = 0, .top_p = 0.5, .min_p = 0}).size(), 2u);
  EXPECT_EQ(draw({.temperature = 1, .top_k = 0, .top_p = 0, .min_p = 0}).size(), 1u);
  EXPECT_EQ(draw({.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0.2}).size(), 3u);
}

TEST(Sampler, SameSeedSameTokens) {
  Sampler a({.seed = 5}), b({.seed = 5}), c({.seed = 6});
  int same = 0;
  for (int i = 0; i < 200; ++i) {
    const int32_t token = a.sample(kLogits);
    EXPECT_EQ(token, b.sample(kLogits));
    same += token == c.sample(kLogits) ? 1 : 0;
  }
  EXPECT_LT(same, 200);
}

TEST(Sampler, PenaltyPushesRecentTokensDown) {
  Sampler sampler({.temperature = 0, .repeat_penalty = 3});
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(kLogits), 3);
}

TEST(Sampler, NotANumberIsNeverDrawn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {nan, nan, 0.5f, nan};
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature});
    for (int i = 0; i < 20; ++i) EXPECT_EQ(sampler.sample(logits), 2);
  }
}

TEST(StopFilter, HoldsBackWhatMayBecomeAStopText) {
  StopFilter filter({"END", "\n\n"});
  EXPECT_EQ(filter.push("hello E"), "hello ");
  EXPECT_EQ(filter.push("N"), "");
  EXPECT_EQ(filter.push("ough\n"), "ENough");
  EXPECT_EQ(filter.push("x"), "\nx");
  EXPECT_EQ(filter.push("a EN"), "a ");
  EXPECT_EQ(filter.push("D and more"), "");
  EXPECT_TRUE(filter.is_stopped());
  EXPECT_EQ(filter.flush(), "");
  StopFilter other({"END"});
  EXPECT_EQ(other.push("tail EN"), "tail ");
  EXPECT_EQ(other.flush(), "EN") << "an incomplete stop text is text";
}

}  // namespace
}  // namespace quern
