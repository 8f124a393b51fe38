// SPDX-License-Identifier: Apache-2.0
#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace quern {

int32_t argmax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    // A NaN never wins, also not by being first.
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  return static_cast<int32_t>(best);
}

int32_t sample_plain(std::span<const float> logits, Random& random) {
  const int32_t best = argmax(logits);
  const double top = logits[static_cast<size_t>(best)];
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - top);
  double draw = random.uniform() * total;
  for (size_t i = 0; i < logits.size(); ++i) {
    draw -= std::exp(logits[i] - top);
    if (draw < 0) return static_cast<int32_t>(i);
  }
  return best;
}

void Sampler::penalise(std::vector<float>& logits) const {
  const auto n = static_cast<int64_t>(history_.size());
  const int64_t first = std::max<int64_t>(0, n - options_.repeat_last_n);
  const std::set<int32_t> recent(history_.begin() + first, history_.end());
  const auto penalty = static_cast<float>(options_.repeat_penalty);
  for (const int32_t token : recent) {
    if (token < 0 || token >= static_cast<int32_t>(logits.size())) continue;
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

int32_t Sampler::sample(std::span<const float> raw) {
  std::vector<float> logits(raw.begin(), raw.end());
  if (options_.repeat_penalty != 1.0) penalise(logits);
  if (options_.temperature <= 0) return argmax(logits);

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto is_before = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::erase_if(order, [&](int32_t i) { return !std::isfinite(logits[static_cast<size_t>(i)]); });
  if (order.empty()) return argmax(logits);
  const size_t kept = options_.top_k > 0
                          ? std::min(order.size(), static_cast<size_t>(options_.top_k))
                          : order.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(kept), order.end(),
                    is_before);
  order.resize(kept);

  std::vector<double> share(kept);
  const double top = logits[static_cast<size_t>(order[0])];
  for (size_t i = 0; i < kept; ++i) {
    share[i] = std::exp((logits[static_cast<size_t>(order[i])] - top) / options_.temperature);
  }
  double total = std::accumulate(share.begin(), share.end(), 0.0);
  double running = 0;
  size_t n = 0;
  while (n < kept) {
    if (n > 0 && (running >= options_.top_p * total || share[n] < options_.min_p)) break;
    running += share[n++];
  }
  double draw = random_.uniform() * running;
  for (size_t i = 0; i + 1 < n; ++i) {
    draw -= share[i];
    if (draw < 0) return order[i];
  }
  return order[n - 1];
}

}  // namespace quern
