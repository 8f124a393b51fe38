// SPDX-License-Identifier: Apache-2.0
// Perplexity of a text and divergence from a base model, by the protocols the field uses.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/baseline.h"
#include "model/model.h"

namespace quern {

// How a token sequence is cut into windows of n_ctx tokens and which are scored.
enum class Protocol : uint8_t {
  kBosWindows,  // runs of n_ctx - 1 tokens, BOS put before each; every token scored
  kStrided,     // runs of n_ctx tokens, no BOS; all but the first scored (GPTQ, AWQ tables)
  kSecondHalf,  // runs of n_ctx tokens, the first replaced by BOS; tokens after the middle scored
};
std::optional<Protocol> protocol_from_name(std::string_view name);  // "bos_windows", ...
std::string_view protocol_name(Protocol protocol);

struct EvalOptions {
  Protocol protocol = Protocol::kBosWindows;
  int64_t n_ctx = 1024;
  int64_t max_windows = 0;  // 0: the whole text
  KvCacheRecipe kv;         // of the evaluated models' caches; the base has halves
  // In the place of a base: what was kept of one. Refused where it is of another text or protocol,
  // or of another model than the one the evaluated model says it was made from.
  const Baseline* baseline = nullptr;
  BaselineWriter* save = nullptr;  // gathers what is to be kept of the first model
  // Asked between windows with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

struct EvalResult {
  int64_t n_tokens = 0;  // scored
  double nll = 0, nll_stderr = 0;
  double ppl = 0, ppl_stderr = 0;
  double seconds = 0;  // of the evaluated model alone
  double tokens_per_second = 0;
  double kv_bytes = 0;  // allocated for the cache of a window at its end; the mean
  // Of the evaluated model's caches behind a window: of a number in pages (0: there are none), and
  // of any that is held; means over the windows.
  double kv_bits = 0, kv_held_bits = 0;
  // Against the base: nats per token, KL(base || model).
  bool has_base = false;
  double kl_mean = 0, kl_stderr = 0, kl_p99 = 0;
  double top1 = 0;  // share of positions where both rank the same token first
  // By a baseline: KL where all but the likeliest tokens count as one, which is never more than KL;
  // what of kl_stderr comes from drawing tokens; and the perplexity of the base.
  bool has_baseline = false;
  double kl_least = 0, kl_draw_stderr = 0, base_ppl = 0;
};

// Evaluates models side by side: every window is run by the base once and by each model in turn, so
// comparing many costs the base once. `base` may be null. What is kept of each model is its stream
// behind a window; logits exist for a few positions at a time, of the base and one model. A model
// that is its own base, with a plain cache, has divergence zero and is not run twice.
Result<std::vector<EvalResult>> evaluate(std::span<const Model* const> models, const Model* base,
                                         std::span<const Token> text, const EvalOptions& options);
Result<EvalResult> evaluate(const Model& model, const Model* base, std::span<const Token> text,
                            const EvalOptions& options);
// One model with several caches, in the place of options.kv; its plain one is the base.
Result<std::vector<EvalResult>> evaluate_caches(const Model& model,
                                                std::span<const KvCacheRecipe> caches,
                                                std::span<const Token> text,
                                                const EvalOptions& options);

// What a baseline of this text is known by.
Result<BaselineText> baseline_text(const ModelDesc& model, std::span<const Token> text,
                                   const EvalOptions& options);

// What a model is fed in each window, as evaluate feeds it.
Result<std::vector<std::vector<Token>>> window_inputs(const ModelDesc& model,
                                                      std::span<const Token> text,
                                                      const EvalOptions& options);

}  // namespace quern
