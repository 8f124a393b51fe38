// SPDX-License-Identifier: Apache-2.0
#include "eval/samples.h"

#include <algorithm>
#include <set>

#include "model/generate.h"

namespace quern {
namespace {

Result<std::vector<Token>> greedy(const Model& model, const Tokenizer& tokenizer,
                                  const std::vector<Token>& prompt, int64_t n_predict,
                                  const KvCacheRecipe& kv) {
  GenerateOptions options;
  options.n_predict = n_predict;
  options.ignore_eos = true;
  options.kv = kv;
  options.sampler.temperature = 0;
  QUERN_ASSIGN(GenerateResult result, generate(model, tokenizer, prompt, options));
  return std::move(result.tokens);
}

}  // namespace

double repetition_rate(std::span<const Token> text) {
  constexpr size_t kRun = 4;
  if (text.size() < kRun) return 0;
  std::set<std::vector<Token>> seen;
  const size_t n = text.size() - kRun + 1;
  for (size_t i = 0; i < n; ++i) {
    const std::span<const Token> run = text.subspan(i, kRun);
    seen.emplace(run.begin(), run.end());
  }
  return 1 - static_cast<double>(seen.size()) / static_cast<double>(n);
}

Result<SampleResult> compare_samples(const Model& model, const Model& base,
                                     const Tokenizer& tokenizer, std::span<const Token> text,
                                     const SampleOptions& options) {
  const auto total = static_cast<int64_t>(text.size());
  if (total < options.n_prompt) {
    return error("the text has {} tokens, expected at least a prompt of {}", total,
                 options.n_prompt);
  }
  SampleResult result;
  for (int64_t i = 0; i < options.n_samples; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(options.n_samples);
    if (!options.proceed(share)) return cancelled();
    Sample sample;
    sample.prompt.reserve(static_cast<size_t>(options.n_prompt) + 1);
    if (model.desc().bos >= 0) sample.prompt.push_back(model.desc().bos);
    const auto first = static_cast<int64_t>(share * static_cast<double>(total - options.n_prompt));
    const auto prompt =
        text.subspan(static_cast<size_t>(first), static_cast<size_t>(options.n_prompt));
    sample.prompt.insert(sample.prompt.end(), prompt.begin(), prompt.end());
    QUERN_ASSIGN(sample.text,
                 greedy(model, tokenizer, sample.prompt, options.n_predict, options.kv));
    QUERN_ASSIGN(sample.base_text, greedy(base, tokenizer, sample.prompt, options.n_predict, {}));
    const auto [here, there] = std::mismatch(sample.text.begin(), sample.text.end(),
                                             sample.base_text.begin(), sample.base_text.end());
    sample.n_agreed = here - sample.text.begin();
    const auto n = static_cast<double>(options.n_samples);
    result.n_agreed += static_cast<double>(sample.n_agreed) / n;
    result.repetition += repetition_rate(sample.text) / n;
    result.base_repetition += repetition_rate(sample.base_text) / n;
    result.samples.push_back(std::move(sample));
  }
  return result;
}

}  // namespace quern
