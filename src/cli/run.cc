// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "base/file.h"
#include "cli/command.h"
#include "model/generate.h"

namespace quern::cli {
namespace {

struct RunOptions {
  std::string model, prompt, file;
  GenerateOptions generate;
  int64_t n_ctx = 0;
  Activations activations{};
  std::string prompt_cache, kv_calibration;
  bool prompt_cache_ro = false;
  bool no_bos = false;
  bool json = false;
};

void add_sampling(CLI::App& app, SamplerOptions& sampler) {
  app.add_option("--temp", sampler.temperature, "temperature; 0: the most likely token")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-k", sampler.top_k, "keep the k most likely tokens; 0: all");
  app.add_option("--top-p", sampler.top_p, "keep the likeliest tokens of this total share")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--min-p", sampler.min_p, "drop tokens below this share of the likeliest")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--repeat-penalty", sampler.repeat_penalty, "1: none")
      ->check(CLI::Range(0.01, 100.0));
  app.add_option("--repeat-last-n", sampler.repeat_last_n, "tokens the penalty looks back");
  app.add_option("-s,--seed", sampler.seed, "seed of the draws");
}

Status generate_text(const RunOptions& o) {
  std::string prompt = o.prompt;
  if (!o.file.empty()) {
    QUERN_ASSIGN(prompt, read_file(o.file));
  }
  QUERN_ASSIGN(const auto model, Model::open(o.model, o.activations));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o.model));
  std::vector<Token> ids = tokenizer->tokenize(prompt);
  if (!o.no_bos && model->desc().bos >= 0) ids.insert(ids.begin(), model->desc().bos);
  GenerateOptions options = o.generate;
  QUERN_TRY(
      plan_cache(*model, o.kv_calibration, o.json ? Output::kQuiet : Output::kText, options.kv));
  std::optional<PromptCache> saved;
  if (!o.prompt_cache_ro) options.save_as = o.prompt_cache;
  if (!o.prompt_cache.empty() && (o.prompt_cache_ro || std::filesystem::exists(o.prompt_cache))) {
    QUERN_ASSIGN(saved, PromptCache::open(o.prompt_cache));
    options.saved = &*saved;
    if (o.prompt.empty() && o.file.empty()) {  // go on where it ends
      ids.assign(saved->tokens().begin(), saved->tokens().end());
      QUERN_TRY(check_ids(model->desc(), ids));
      prompt = tokenizer->detokenize(ids);
    }
  }
  if (ids.empty()) return usage_error("the prompt is empty and the model has no BOS token");
  options.n_ctx = o.n_ctx > 0 ? o.n_ctx : model->desc().n_context;
  std::string text;
  bool is_prompt_shown = o.json;
  options.on_text = [&](std::string_view piece) {
    if (!std::exchange(is_prompt_shown, true)) fmt::print("{}", prompt);  // the prompt was run
    text += piece;
    if (!o.json) {
      fmt::print("{}", piece);
      std::fflush(stdout);
    }
    return !interrupted();
  };
  QUERN_ASSIGN(const GenerateResult result, generate(*model, *tokenizer, ids, options));
  if (o.json) {
    const Json json = {{"prompt", prompt},
                       {"text", text},
                       {"tokens", result.tokens},
                       {"stop", result.stop_reason},
                       {"kv", options.kv.text},
                       {"prompt_tokens", ids.size()},
                       {"cached_tokens", result.n_reused},
                       {"prompt_tokens_per_second", result.prompt_tokens_per_second},
                       {"generated_tokens_per_second", result.generated_tokens_per_second}};
    fmt::print("{}\n", json.dump(-1, ' ', false, Json::error_handler_t::replace));
    return {};
  }
  fmt::print("\n");
  fmt::print(stderr, "[{} prompt tokens at {:.1f}/s, {} generated at {:.1f}/s, stopped by {}]\n",
             ids.size(), result.prompt_tokens_per_second, result.tokens.size(),
             result.generated_tokens_per_second, result.stop_reason);
  return {};
}

}  // namespace

Action declare_run(CLI::App& app) {
  const auto o = std::make_shared<RunOptions>();
  add_model(app, o->model);
  app.add_option("-p,--prompt", o->prompt, "text to continue");
  app.add_option("-f,--file", o->file, "file with the text to continue");
  app.add_option("-n,--predict,--n-predict", o->generate.n_predict, "most tokens to generate")
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("-c,--ctx-size", o->n_ctx, "context; 0: from the model")
      ->check(CLI::Range(0, 1 << 30));
  add_kv(app, o->activations, o->generate.kv, o->kv_calibration);
  app.add_option("--prompt-cache", o->prompt_cache,
                 "file that keeps the cache of the prompt for the next run; without a prompt, the "
                 "text to continue");
  app.add_flag("--prompt-cache-all", o->generate.save_generated,
               "keep what is generated in the file too");
  app.add_flag("--prompt-cache-ro", o->prompt_cache_ro, "read the file and leave it as it is");
  app.add_option("--stop", o->generate.stop, "text that ends generation (repeatable)");
  app.add_flag("--ignore-eos", o->generate.ignore_eos, "go on after an end-of-text token");
  app.add_flag("--no-bos", o->no_bos, "do not put BOS before the prompt");
  add_sampling(app, o->generate.sampler);
  add_activations(app, o->activations);
  add_threads(app);
  add_json(app, o->json);
  app.footer("Example:\n  quern run models/tiny -p 'The history of the city' -n 64 --temp 0");
  return [o] { return generate_text(*o); };
}

}  // namespace quern::cli
