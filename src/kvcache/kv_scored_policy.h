// SPDX-License-Identifier: Apache-2.0
// What policies share that keep the newest tokens and, of the others, those of the largest sums of
// attention (h2o, keyformer). Each has its own `observe`.
#pragma once

#include <memory>
#include <string>

#include "kvcache/kv_policy.h"

namespace quern {

class KvScoredPolicy : public KvPolicy {
 public:
  // Reads `budget`, `window` (0: default_window) and `every`.
  KvScoredPolicy(const spec::Params& params, int64_t default_window)
      : text_(policy_text(params)),
        budget_(params.integer("budget")),
        window_(params.integer("window") > 0 ? params.integer("window") : default_window),
        every_(params.integer("every")) {}

  std::string spec() const override { return text_; }
  int64_t budget() const override { return budget_; }
  int64_t most_slots() const override { return budget_ + every_; }
  int64_t next_decision(int64_t position) const override {
    return (position / every_ + 1) * every_;
  }
  bool reads_weights() const override { return true; }
  Status check_coded() const override {
    return usage_error("{} drops single positions, and a page of codes cannot lose one", text_);
  }
  void choose(std::span<const float> scores, std::vector<int32_t>& keep) const override {
    keep_best(scores, budget_, window_, keep);
  }

 private:
  std::string text_;
  int64_t budget_, window_, every_;
};

template <class Policy>
Result<std::unique_ptr<KvPolicy>> make_scored_policy(std::string_view name,
                                                     const spec::Params& params) {
  if (params.integer("window") > params.integer("budget")) {
    return usage_error("{}: a window of {} in a budget of {}", name, params.integer("window"),
                       params.integer("budget"));
  }
  return std::make_unique<Policy>(params);
}

}  // namespace quern
