// SPDX-License-Identifier: Apache-2.0
// Greedy text of a model beside that of its base: how long the two agree, and how much each repeats
// itself. A model that diverges little but loops, or breaks off at once, shows here.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "model/model.h"

namespace quern {

struct SampleOptions {
  int64_t n_samples = 8;
  int64_t n_prompt = 32;   // tokens of a prompt, BOS before them if the model has one
  int64_t n_predict = 64;  // tokens that follow, past any end of text
  KvCacheRecipe kv;        // of the model's caches; the base has halves
  // Asked between samples with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

struct Sample {
  std::vector<Token> prompt, text, base_text;
  int64_t n_agreed = 0;  // tokens before the first that differs
};

struct SampleResult {
  std::vector<Sample> samples;
  double n_agreed = 0;                         // mean
  double repetition = 0, base_repetition = 0;  // mean repetition_rate
};

// Prompts are cut from `text` at equal distances. Fails where it is shorter than one.
Result<SampleResult> compare_samples(const Model& model, const Model& base,
                                     const Tokenizer& tokenizer, std::span<const Token> text,
                                     const SampleOptions& options);

// Share of the runs of 4 tokens that occur earlier in the same text.
double repetition_rate(std::span<const Token> text);

}  // namespace quern
