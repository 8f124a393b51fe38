// SPDX-License-Identifier: Apache-2.0
// Tokens per second of a model, prompt and generation apart.
#pragma once

#include <vector>

#include "model/model.h"

namespace quern {

struct SpeedOptions {
  int64_t n_prompt = 512;
  int64_t n_generate = 64;
  int repetitions = 3;
  uint64_t seed = 0;  // of the random prompt
};

struct SpeedResult {
  // One entry per repetition, tokens per second.
  std::vector<double> prompt, generated;
  double prompt_median = 0, generated_median = 0;
  size_t bytes_per_token = 0;  // weights read for one generated token
};

Result<SpeedResult> measure_speed(const Model& model, const SpeedOptions& options);

}  // namespace quern
