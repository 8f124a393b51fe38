// SPDX-License-Identifier: Apache-2.0
// Any bytes as a baseline: refused, or one that every position can be compared with.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "eval/baseline.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto baseline = Baseline::parse(std::as_bytes(std::span(data, size)));
  if (!baseline) {
    QUERN_CHECK(!baseline.error().message.empty());
    return 0;
  }
  if (baseline->n_vocab() > 4096) return 0;
  std::vector<float> logits(static_cast<size_t>(baseline->n_vocab()));
  for (size_t j = 0; j < logits.size(); ++j) logits[j] = static_cast<float>(j % 7);
  for (int64_t i = 0; i < baseline->n_positions(); ++i) {
    const BaselineDivergence got = baseline->compare(i, logits);
    QUERN_CHECK(std::isfinite(got.kl) && got.kl_least <= INFINITY && got.tail_variance >= 0);
  }
  QUERN_CHECK(std::isfinite(baseline->nll()));
  return 0;
}
