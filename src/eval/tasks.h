// SPDX-License-Identifier: Apache-2.0
// Zero-shot tasks by log-likelihood, as the Evaluation Harness defines them (EleutherAI
// lm-evaluation-harness 0.4, `loglikelihood` requests): where a context ends in spaces they go to
// the continuation; the continuation's tokens are those of both texts together past as many as the
// context has; no BOS unless asked for, and BOS or EOS for an empty context; what is longer than
// the model's context loses its beginning.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"
#include "eval/mean.h"
#include "eval/task_items.h"
#include "model/model.h"

namespace quern {

struct TaskOptions {
  bool bos = false;  // before every context
  KvCacheRecipe kv;
  // Asked between items with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

struct TaskAnswer {
  std::vector<double> log_likelihoods;  // of every request, in nats
  std::vector<bool> is_greedy;          // the continuation is the likeliest token by token
  // Picks, the first among equals; of kTarget 0 where is_greedy, else 1.
  int64_t pick = 0, pick_norm = 0;
  bool is_right = false, is_right_norm = false;
};

struct TaskResult {
  std::vector<TaskAnswer> answers;
  Mean accuracy;
  Mean accuracy_norm;   // kChoices
  Mean log_likelihood;  // kTarget: of targets, so that their perplexity is exp(-value)
  double seconds = 0;
};

// Every context is computed once for all its continuations.
Result<TaskResult> run_task(const Model& model, const Tokenizer& tokenizer, const Task& task,
                            const TaskOptions& options);

// The same items answered by a base model and another: is the difference more than chance?
struct PairedAccuracy {
  Mean difference;                // of accuracies, other minus base
  int64_t n_won = 0, n_lost = 0;  // items that only the other, only the base gets right
  double p_value = 1;             // McNemar's exact test, two-sided
};
PairedAccuracy compare_paired(const TaskResult& base, const TaskResult& other);

// Tokens of a request, context and continuation.
struct RequestTokens {
  std::vector<Token> context, continuation;
};
Result<RequestTokens> tokenize_request(const Tokenizer& tokenizer, const TaskRequest& request,
                                       bool bos);

}  // namespace quern
