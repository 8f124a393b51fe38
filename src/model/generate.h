// SPDX-License-Identifier: Apache-2.0
// Text from a prompt: prefill, then token by token, streamed as whole characters.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "model/prompt_cache.h"
#include "model/sampler.h"
#include "tokenizer/tokenizer.h"

namespace quern {

struct GenerateOptions {
  int64_t n_predict = 128;
  int64_t n_ctx = 0;              // room for prompt and generated tokens; 0: the model's context
  int64_t n_batch = 512;          // prompt tokens run together; the text does not depend on it
  KvCacheRecipe kv;               // of the cache
  std::vector<std::string> stop;  // generation ends before any of these
  bool ignore_eos = false;
  const PromptCache* saved = nullptr;  // what its tokens share with the prompt is not run again
  // Where to save the cache behind the prompt, or behind the text that was generated; empty:
  // nowhere.
  std::string save_as;
  bool save_generated = false;
  SamplerOptions sampler;
  // Gets whole UTF-8 characters that cannot be part of a stop text any more; false ends.
  std::function<bool(std::string_view)> on_text = [](std::string_view) { return true; };
};

struct GenerateResult {
  std::vector<Token> tokens;
  std::string stop_reason;  // "length", "eos", "stop", "context", "cancelled"
  int64_t n_reused = 0;     // tokens of the prompt that came from `saved`
  double prompt_tokens_per_second = 0, generated_tokens_per_second = 0;
};

Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Token> prompt, const GenerateOptions& options);

// Holds back text that could be the beginning of a stop text.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // What may be shown now. After a stop text was met, nothing more.
  std::string push(std::string_view text);
  std::string flush();
  bool is_stopped() const { return is_stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool is_stopped_ = false;
};

}  // namespace quern
