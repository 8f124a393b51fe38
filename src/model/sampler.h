// SPDX-License-Identifier: Apache-2.0
// From logits to a token. Filters run in the order users know: repetition penalty, temperature,
// top-k, top-p, min-p, then one seeded draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"

namespace quern {

struct SamplerOptions {
  double temperature = 0.8;     // 0: the most likely token
  int64_t top_k = 40;           // 0: all
  double top_p = 0.95;          // 1: all
  double min_p = 0.05;          // 0: all; share of the most likely token's probability
  double repeat_penalty = 1.0;  // > 1 makes recent tokens less likely
  int64_t repeat_last_n = 64;   // recent tokens that the penalty looks at
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}
  // Ties go to the lower id. `logits` is not changed. Non-finite logits are never drawn.
  int32_t sample(std::span<const float> logits);
  // Tells the sampler which token followed (prompt tokens too).
  void accept(int32_t token) { history_.push_back(token); }

 private:
  void penalise(std::vector<float>& logits) const;
  SamplerOptions options_;
  Random random_;
  std::vector<int32_t> history_;
};

int32_t argmax(std::span<const float> logits);

// One draw from softmax(logits), nothing filtered.
int32_t sample_plain(std::span<const float> logits, Random& random);

}  // namespace quern
