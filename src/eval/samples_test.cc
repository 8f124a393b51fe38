// SPDX-License-Identifier: Apache-2.0
#include "eval/samples.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

TEST(Samples, RepetitionIsTheShareOfRunsSeenBefore) {
  const std::vector<Token> fresh = {1, 2, 3, 4, 5, 6, 7}, one(8, 5),
                           pair = {1, 2, 1, 2, 1, 2, 1, 2};
  EXPECT_EQ(repetition_rate(fresh), 0);
  EXPECT_EQ(repetition_rate(one), .8);   // five runs, one of its own
  EXPECT_EQ(repetition_rate(pair), .6);  // five runs, two of their own
  EXPECT_EQ(repetition_rate(std::span(fresh).first(3)), 0);
}

TEST(Samples, AgreeUntilTheFirstTokenThatDiffers) {
  const auto exact = *Model::open(kTiny, Activations::kExact);
  const auto tokenizer = *Tokenizer::open(kTiny);
  std::vector<Token> text;
  for (Token id = 0; id < 200; ++id) text.push_back(5 + id * 37 % 4000);
  SampleOptions options;
  options.n_samples = 3;
  options.n_predict = 24;
  const auto same = compare_samples(*exact, *exact, *tokenizer, text, options);
  ASSERT_TRUE(same.has_value()) << same.error().message;
  EXPECT_EQ(same->n_agreed, 24);
  EXPECT_EQ(same->repetition, same->base_repetition);
  ASSERT_EQ(same->samples.size(), 3u);
  EXPECT_EQ(same->samples[0].prompt.size(), 33u);
  EXPECT_EQ(same->samples[0].prompt[1], text[0]);
  EXPECT_EQ(same->samples[1].prompt[1], text[56]);
  // Keys and values of one bit change the text at some point, not at once in every sample.
  options.kv = *KvRecipe::parse("kv(k=int(2), v=int(2))");
  options.n_predict = 200;
  const auto other = compare_samples(*exact, *exact, *tokenizer, text, options);
  ASSERT_TRUE(other.has_value()) << other.error().message;
  EXPECT_LT(other->n_agreed, 200);
  for (const Sample& sample : other->samples) {
    ASSERT_EQ(sample.text.size(), 200u);
    for (int64_t i = 0; i < 200; ++i) {
      const bool is_same =
          sample.text[static_cast<size_t>(i)] == sample.base_text[static_cast<size_t>(i)];
      if (i <= sample.n_agreed) {
        EXPECT_EQ(is_same, i < sample.n_agreed);
      }
    }
  }
  const auto refused =
      compare_samples(*exact, *exact, *tokenizer, std::span(text).first(10), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("10 tokens"), std::string::npos);
}

}  // namespace
}  // namespace quern
