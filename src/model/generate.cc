// SPDX-License-Identifier: Apache-2.0
#include "model/generate.h"

#include <algorithm>
#include <chrono>

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

double rate(int64_t n, Clock::time_point start) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return seconds > 0 ? static_cast<double>(n) / seconds : 0;
}

// Runs the prompt; hidden gets the row of its last token.
Status prefill(const Model& model, KvCache& cache, std::span<const Token> prompt, int64_t n_batch,
               Matrix<float>& last_hidden) {
  for (size_t at = 0; at < prompt.size(); at += static_cast<size_t>(n_batch)) {
    const std::span<const Token> part =
        prompt.subspan(at, std::min(prompt.size() - at, static_cast<size_t>(n_batch)));
    Matrix<float> hidden(static_cast<int64_t>(part.size()), model.desc().d_model);
    QUERN_TRY(model.forward(cache, part, hidden.view()));
    std::copy_n(hidden.row(hidden.rows() - 1), hidden.cols(), last_hidden.data());
  }
  return {};
}

}  // namespace

std::string StopFilter::push(std::string_view text) {
  if (is_stopped_) return {};
  held_ += text;
  size_t cut = held_.size();
  for (const std::string& stop : stops_) {
    if (stop.empty()) continue;
    if (const size_t at = held_.find(stop); at < cut) {
      cut = at;
      is_stopped_ = true;
    }
  }
  if (!is_stopped_) {
    // The longest tail that begins a stop text stays.
    for (const std::string& stop : stops_) {
      for (size_t n = std::min(stop.size(), held_.size()); n > 0; --n) {
        if (held_.ends_with(std::string_view(stop).substr(0, n))) {
          cut = std::min(cut, held_.size() - n);
          break;
        }
      }
    }
  }
  std::string shown = held_.substr(0, cut);
  held_.erase(0, is_stopped_ ? held_.size() : cut);
  return shown;
}

std::string StopFilter::flush() { return std::exchange(held_, {}); }

Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Token> prompt, const GenerateOptions& options) {
  const int64_t n_ctx = options.n_ctx > 0 ? options.n_ctx : model.desc().n_context;
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  if (n_prompt == 0) return usage_error("the prompt has no tokens");
  if (n_prompt > n_ctx) {
    return error("the prompt has {} tokens, the context holds {}", n_prompt, n_ctx);
  }
  // Memory for what can be used, not for the longest context a model was made for.
  const int64_t room = std::min(n_ctx, n_prompt + options.n_predict);
  QUERN_ASSIGN(KvCache cache, model.make_cache(room, options.kv));
  Sampler sampler(options.sampler);
  for (const Token id : prompt) sampler.accept(id);
  Matrix<float> hidden(1, model.desc().d_model), logits(1, model.desc().n_vocab);
  GenerateResult result;
  auto start = Clock::now();
  QUERN_TRY(prefill(model, cache, prompt, options.n_batch, hidden));
  result.prompt_tokens_per_second = rate(n_prompt, start);
  start = Clock::now();
  Utf8Stream characters;
  StopFilter filter(options.stop);
  result.stop_reason = "length";
  while (static_cast<int64_t>(result.tokens.size()) < options.n_predict) {
    model.logits(hidden.view(), logits.view());
    const Token next = sampler.sample({logits.data(), static_cast<size_t>(model.desc().n_vocab)});
    const std::vector<int32_t>& eos = model.desc().eos;
    if (!options.ignore_eos && std::find(eos.begin(), eos.end(), next) != eos.end()) {
      result.stop_reason = "eos";
      break;
    }
    sampler.accept(next);
    result.tokens.push_back(next);
    const std::string piece = tokenizer.detokenize_middle({&next, 1});
    if (!options.on_text(filter.push(characters.push(piece)))) {
      result.stop_reason = "cancelled";
      return result;
    }
    if (filter.is_stopped()) {
      result.stop_reason = "stop";
      break;
    }
    if (cache.length() == cache.capacity()) {
      if (static_cast<int64_t>(result.tokens.size()) < options.n_predict) {
        result.stop_reason = "context";
      }
      break;
    }
    QUERN_TRY(model.forward(cache, {&next, 1}, hidden.view()));
  }
  result.generated_tokens_per_second = rate(static_cast<int64_t>(result.tokens.size()), start);
  options.on_text(filter.push(characters.flush()) + filter.flush());
  return result;
}

}  // namespace quern
