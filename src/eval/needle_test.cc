// SPDX-License-Identifier: Apache-2.0
#include "eval/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/file.h"
#include "eval/continuation.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const std::string kText = QUERN_SOURCE_DIR "/models/evaluation.txt";

ModelDesc some_model() {
  ModelDesc model;
  model.bos = 0;
  model.n_vocab = model.n_context = 1 << 20;
  return model;
}

std::vector<Token> numbered(int64_t n) {
  std::vector<Token> text(static_cast<size_t>(n));
  std::iota(text.begin(), text.end(), 7);
  return text;
}

std::string refusal(const ModelDesc& model, int64_t n_text, const NeedleOptions& options) {
  const auto samples = needle_samples(model, numbered(n_text), options);
  return samples ? "" : samples.error().message;
}

bool is_run(const std::vector<Token>& tokens) {
  for (size_t i = 1; i < tokens.size(); ++i) {
    if (tokens[i] != tokens[i - 1] + 1) return false;
  }
  return true;
}

TEST(Needle, SamplesAreRunsOfTheTextThatDoNotOverlap) {
  NeedleOptions options;
  options.n_ctx = 100;
  options.length = 10;
  options.n_copies = 2;
  options.n_samples = 40;
  for (const int64_t n_text : {108, 109, 130, 500}) {  // 89 of filler, 9 or more on both sides
    const auto samples = needle_samples(some_model(), numbered(n_text), options);
    ASSERT_TRUE(samples.has_value()) << samples.error().message;
    ASSERT_EQ(samples->size(), 40u);
    Token last = 0;
    bool is_before = false, is_behind = false;
    for (const NeedleSample& sample : *samples) {
      ASSERT_EQ(sample.filler.size(), 89u);
      ASSERT_EQ(sample.needle.size(), 10u);
      EXPECT_TRUE(is_run(sample.filler) && is_run(sample.needle));
      EXPECT_GE(sample.filler[0], last);
      last = sample.filler[0];
      EXPECT_GE(sample.needle.front(), 7);
      EXPECT_LT(sample.needle.back(), 7 + n_text);
      is_before = is_before || sample.needle.back() < sample.filler.front();
      is_behind = is_behind || sample.needle.front() > sample.filler.back();
      EXPECT_TRUE(sample.needle.back() < sample.filler.front() ||
                  sample.needle.front() > sample.filler.back());
    }
    EXPECT_TRUE(is_before && is_behind) << n_text;
  }
  const auto needles = [&](uint64_t seed) {
    options.seed = seed;
    const auto samples = needle_samples(some_model(), numbered(500), options);
    EXPECT_TRUE(samples.has_value());
    std::vector<Token> first;
    for (const NeedleSample& sample : *samples) first.push_back(sample.needle[0]);
    return first;
  };
  EXPECT_EQ(needles(1), needles(1));
  EXPECT_NE(needles(1), needles(2));
}

TEST(Needle, WhatDoesNotFitIsRefused) {
  NeedleOptions options;
  options.n_ctx = 36;
  options.length = 10;
  options.n_copies = 2;
  EXPECT_EQ(refusal(some_model(), 44, options), "");  // 1 + 5 + 3 * 10 tokens, 25 of filler
  EXPECT_NE(refusal(some_model(), 43, options).find("43 tokens, expected at least 44"),
            std::string::npos);
  options.n_ctx = 35;
  EXPECT_NE(refusal(some_model(), 100, options).find("need 36"), std::string::npos);
  options.n_ctx = 100;
  for (const int64_t length : {0, 1, 9}) {
    options.length = length;
    EXPECT_NE(refusal(some_model(), 200, options).find("an even number"), std::string::npos);
  }
  options.length = 10;
  ModelDesc model = some_model();
  model.bos = -1;
  EXPECT_NE(refusal(model, 200, options).find("BOS"), std::string::npos);
  model = some_model();
  model.n_vocab = 100;
  EXPECT_NE(refusal(model, 200, options), "");
}

class Needles : public ::testing::Test {
 protected:
  Needles() {
    options_.n_ctx = 256;
    options_.length = 24;
    options_.n_copies = 2;
    options_.n_depths = 3;
    options_.n_samples = 2;
    samples_ = *needle_samples(model_->desc(), text(), options_);
  }
  static std::vector<Token> text() {
    return (*Tokenizer::open(kTiny))->tokenize(*read_file(kText));
  }
  NeedleResult find(const std::string& kv) const {
    auto result = find_needles(*model_, *KvCacheRecipe::parse(kv), samples_, options_);
    EXPECT_TRUE(result.has_value()) << result.error().message;
    return *std::move(result);
  }
  // A prompt in one call on a cache of its own.
  ContinuationScore alone(const std::string& kv, std::vector<Token> prompt,
                          const NeedleSample& sample) const {
    const auto half = static_cast<std::ptrdiff_t>(sample.needle.size() / 2);
    prompt.insert(prompt.end(), sample.needle.begin(), sample.needle.begin() + half);
    const auto n = static_cast<int64_t>(prompt.size());
    KvCache cache = *model_->make_cache(options_.n_ctx, *KvCacheRecipe::parse(kv));
    Matrix<float> hidden(n, model_->desc().d_model);
    EXPECT_TRUE(model_->forward(cache, prompt, hidden.view()));
    const std::vector<Token> answer(sample.needle.begin() + half, sample.needle.end());
    EXPECT_EQ(n + half, options_.n_ctx);
    return *score_continuation(*model_, cache, hidden.row(n - 1), answer);
  }

  std::unique_ptr<Model> model_ = *Model::open(kTiny);
  NeedleOptions options_;
  std::vector<NeedleSample> samples_;
};

// A policy that decides where the prompt ends is compared with one that is told where this is.
TEST_F(Needles, AreWhatTheWholePromptGivesAtOnce) {
  const std::pair<const char*, const char*> caches[] = {
      {"f16", "f16"},
      {"kivi-2bit", "kivi-2bit"},
      {"kv(evict=h2o(60))", "kv(evict=h2o(60))"},
      {"kv(evict=snapkv(60))", "kv(evict=snapkv(60, prompt=244))"}};
  for (const auto& [kv, told] : caches) {
    const NeedleResult result = find(kv);
    ASSERT_EQ(result.depths, (std::vector<double>{1 / 6., .5, 5 / 6.}));
    for (size_t s = 0; s < samples_.size(); ++s) {
      const NeedleSample& sample = samples_[s];
      const auto expect = [&](const NeedleScores& scores, const std::vector<Token>& prompt) {
        const ContinuationScore score = alone(told, prompt, sample);
        EXPECT_EQ(scores.recall[s], static_cast<double>(score.n_top) / 12) << kv;
        EXPECT_EQ(scores.log_likelihood[s], score.log_likelihood / 12) << kv;
      };
      std::vector<Token> control = {model_->desc().bos};
      control.insert(control.end(), sample.filler.begin(), sample.filler.end());
      expect(result.control, control);
      for (size_t i = 0; i < 3; ++i) {
        // 231 of filler, of which the two needles take 48
        const auto depth = static_cast<std::ptrdiff_t>(result.depths[i] * (231 - 48));
        std::vector<Token> prompt(control.begin(), control.end() - 48);
        for (int copy = 0; copy < 2; ++copy) {
          prompt.insert(prompt.begin() + 1 + depth, sample.needle.begin(), sample.needle.end());
        }
        expect(result.at[i], prompt);
      }
      double sum = 0;
      for (const NeedleScores& scores : result.at) sum += scores.log_likelihood[s];
      EXPECT_NEAR(result.mean.log_likelihood[s], sum / 3, 1e-12);
    }
  }
}

TEST_F(Needles, ACacheThatLostThemKnowsNoMoreThanTheControl) {
  options_.n_samples = 6;
  samples_ = *needle_samples(model_->desc(), text(), options_);
  const auto gain = [&](const NeedleResult& result, size_t depth) {
    return paired_difference(result.control.log_likelihood, result.at[depth].log_likelihood);
  };
  const NeedleResult plain = find("f16"), windowed = find("kv(evict=streaming(window=40))");
  for (size_t i = 0; i < 3; ++i) EXPECT_GT(gain(plain, i).value, .5) << i;
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_LT(std::abs(gain(windowed, i).value), gain(plain, i).value / 4) << i;
  }
  EXPECT_GT(gain(windowed, 2).value, gain(plain, 2).value / 2);  // still in the window
  EXPECT_NEAR(plain.kv_held_bits, 16, 1e-9);                     // a mean
  EXPECT_LT(windowed.kv_held_bits, 8);
}

TEST_F(Needles, CanBeCancelled) {
  options_.proceed = [](double done) { return done < .5; };
  const auto result = find_needles(*model_, {}, samples_, options_);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind, ErrorKind::kCancelled);
}

}  // namespace
}  // namespace quern
