// SPDX-License-Identifier: Apache-2.0
// Tokens per second of a model, prompt and generation apart, and how fast its codes decode.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"

namespace quern {

struct SpeedOptions {
  int64_t depth = 0;  // positions that the cache holds before: random keys and values
  int64_t n_prompt = 512;
  int64_t n_generate = 64;  // steps; each gives one token of every sequence
  int64_t n_sequences = 1;  // decoded at once
  int repetitions = 3;
  KvCacheRecipe kv;
  uint64_t seed = 0;  // of the random prompt
  // Told what is done and the share of all, between steps; false cancels.
  std::function<bool(double, std::string_view)> proceed = [](double, std::string_view) {
    return true;
  };
};

// Tokens per second, one entry per repetition.
struct Rates {
  std::vector<double> runs;
  // Of each run, the shares of time that went to online operators and to attention over the cache.
  std::vector<double> online, attention;
  double median() const;  // 0 without runs
  double min() const;
  double median_online() const;
  double median_attention() const;
};

struct SpeedResult {
  size_t kv_bytes = 0;             // allocated for one sequence behind the prompt
  int64_t kv_bytes_per_token = 0;  // that attention reads, of one sequence in the last step
  Rates prompt;                    // of one sequence
  Rates generated;                 // of all sequences together
};

// Fails on a batch of no sequence and where the model has no room for prompt and steps.
Result<SpeedResult> measure_speed(const Model& model, const SpeedOptions& options);

// Multiply-adds that weights cost: of a prompt token, and of reading one token off (the head).
struct WeightWork {
  double per_token = 0, per_head = 0;
};
WeightWork weight_work(const Model& model);

// How the matrices that a token reads are stored: "int(4, group=64), f16", in order of appearance.
std::string codec_names(const Model& model);
// How the inputs of coded ones are rounded, as the model says: "int(8), int(4)"; empty: it does
// not.
std::string act_names(const Model& model);

// Weights per second of decoding every coded matrix that a token reads, rows shared out among all
// threads; 0 where nothing is coded.
double measure_decoding(const Model& model);

}  // namespace quern
