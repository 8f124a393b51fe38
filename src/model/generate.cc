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

// Brings the cache to where it shares the longest beginning with the prompt; how many tokens that
// are. If it is all of the prompt, hidden gets the row of its last token.
Result<int64_t> reuse(const Model& model, const PromptCache& saved, std::span<const Token> prompt,
                      const KvCacheRecipe& kv, KvCache& cache, Matrix<float>& hidden) {
  const std::span<const Token> old = saved.tokens();
  const auto differs = std::mismatch(old.begin(), old.end(), prompt.begin(), prompt.end()).first;
  const auto n_old = static_cast<int64_t>(old.size());
  auto n = static_cast<int64_t>(differs - old.begin());
  const int64_t room = std::max(cache.capacity(), n_old);
  QUERN_ASSIGN(cache, model.make_cache(room, kv));
  QUERN_TRY(saved.load(model, cache, {hidden.data(), static_cast<size_t>(hidden.cols())}));
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  // What a prompt's end decided does not hold for a longer one.
  bool is_final = false;
  for (const auto& kept : kv.all()) {
    is_final = is_final || (kept->policy != nullptr && kept->policy->n_prompt_queries() > 0);
  }
  if (n == n_old && (n == n_prompt || !is_final)) return n;
  if (n == n_prompt) --n;  // the row of its last token is not there
  if (!is_final && cache.truncate(n)) return n;
  QUERN_ASSIGN(cache, model.make_cache(room, kv));  // what is there is coded: all is run again
  return 0;
}

std::span<const float> row_of(const Matrix<float>& hidden) {
  return {hidden.data(), static_cast<size_t>(hidden.cols())};
}

// The cache behind the prompt, saved if that is asked for, and hidden of its last token.
Status read_prompt(const Model& model, std::span<const Token> prompt,
                   const GenerateOptions& options, KvCache& cache, Matrix<float>& hidden,
                   GenerateResult& result) {
  const auto start = Clock::now();
  if (options.saved != nullptr) {
    QUERN_ASSIGN(result.n_reused, reuse(model, *options.saved, prompt, options.kv, cache, hidden));
  }
  const std::span<const Token> rest = prompt.subspan(static_cast<size_t>(result.n_reused));
  QUERN_TRY(prefill(model, cache, rest, options.n_batch, hidden));
  model.end_prompt(cache);
  result.prompt_tokens_per_second = rate(static_cast<int64_t>(rest.size()), start);
  if (options.save_as.empty() || options.save_generated) return {};
  return save_prompt_cache(options.save_as, model, cache, prompt, row_of(hidden));
}

// The cache behind the text, of which the last token may not have been run.
Status save_text(const Model& model, std::vector<Token> text, int64_t room, const std::string& path,
                 KvCache& cache, Matrix<float>& hidden) {
  const auto n_run = static_cast<size_t>(cache.length());
  if (n_run < text.size() && cache.length() < room) {
    QUERN_TRY(model.forward(cache, {&text[n_run], 1}, hidden.view()));
  }
  text.resize(static_cast<size_t>(cache.length()));
  return save_prompt_cache(path, model, cache, text, row_of(hidden));
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
  QUERN_TRY(read_prompt(model, prompt, options, cache, hidden, result));
  auto start = Clock::now();
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
      break;
    }
    if (filter.is_stopped()) {
      result.stop_reason = "stop";
      break;
    }
    if (cache.length() == room) {
      if (static_cast<int64_t>(result.tokens.size()) < options.n_predict) {
        result.stop_reason = "context";
      }
      break;
    }
    QUERN_TRY(model.forward(cache, {&next, 1}, hidden.view()));
  }
  result.generated_tokens_per_second = rate(static_cast<int64_t>(result.tokens.size()), start);
  if (result.stop_reason != "cancelled") {
    options.on_text(filter.push(characters.flush()) + filter.flush());
  }
  if (options.save_as.empty() || !options.save_generated) return result;
  std::vector<Token> text(prompt.begin(), prompt.end());
  text.insert(text.end(), result.tokens.begin(), result.tokens.end());
  QUERN_TRY(save_text(model, text, room, options.save_as, cache, hidden));
  return result;
}

}  // namespace quern
