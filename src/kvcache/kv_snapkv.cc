// SPDX-License-Identifier: Apache-2.0
// snapkv: of a prompt, what its last tokens attend to (SnapKV, arXiv 2404.14469). One decision, at
// the end of the prompt: the softmax weights of its last `window` queries, summed over them and the
// heads that share a KV head, smoothed over neighbours. What comes after the prompt stays.
#include <algorithm>

#include "kvcache/kv_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"budget", spec::ParamKind::kInt, "", 1, 1 << 24, "", "tokens of the prompt that stay"},
    {"window", spec::ParamKind::kInt, "32", 1, 1 << 12, "", "last tokens of the prompt"},
    {"pool", spec::ParamKind::kInt, "7", 1, 255, "", "neighbours that are smoothed over, odd"},
    {"by", spec::ParamKind::kChoice, "max", 0, 0, "max|mean", "how they are"},
    {"prompt", spec::ParamKind::kInt, "0", 0, 1 << 24, "",
     "length of the prompt; 0: as long as it is"},
};

class KvSnap final : public KvPolicy {
 public:
  explicit KvSnap(const spec::Params& params)
      : text_(policy_text(params)),
        budget_(params.integer("budget")),
        window_(params.integer("window")),
        pool_(params.integer("pool")),
        prompt_(params.integer("prompt")),
        is_mean_(params.word("by") == "mean") {}

  std::string spec() const override { return text_; }
  int64_t budget() const override { return budget_; }
  int64_t most_slots() const override { return kNever; }
  int64_t next_decision(int64_t position) const override {
    return position < prompt_ ? prompt_ : kNever;
  }
  int64_t n_prompt_queries() const override { return window_; }
  Status check_coded() const override { return {}; }
  void choose(std::span<const float> scores, std::vector<int32_t>& keep) const override {
    const auto n = static_cast<int64_t>(scores.size());
    const int64_t n_old = std::max<int64_t>(0, n - window_);
    std::vector<float> pooled(scores.begin(), scores.end());
    for (int64_t i = 0; i < n_old; ++i) {
      const int64_t begin = std::max<int64_t>(0, i - pool_ / 2);
      const int64_t end = std::min(n_old, i + pool_ / 2 + 1);
      float sum = 0, most = 0;
      for (int64_t j = begin; j < end; ++j) {
        sum += scores[static_cast<size_t>(j)];
        most = std::max(most, scores[static_cast<size_t>(j)]);
      }
      // The sum in place of the mean over `pool`, zeros beyond the ends: the same order.
      pooled[static_cast<size_t>(i)] = is_mean_ ? sum : most;
    }
    keep_best(pooled, budget_, window_, keep);
  }

 private:
  std::string text_;
  int64_t budget_, window_, pool_, prompt_;
  bool is_mean_;
};

constexpr std::string_view kExamples[] = {"snapkv(budget=60, prompt=130)",
                                          "snapkv(budget=50, window=16, pool=1, prompt=200)",
                                          "snapkv(70, pool=5, by=mean, prompt=97)"};

}  // namespace

extern const KvPolicyInfo kv_snapkv_policy_info;
const KvPolicyInfo kv_snapkv_policy_info = {
    .name = "snapkv",
    .params = kParams,
    .summary = "of the prompt, what its last tokens attend to (SnapKV)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvPolicy>> {
      if (params.integer("window") > params.integer("budget")) {
        return usage_error("snapkv: a window of {} in a budget of {}", params.integer("window"),
                           params.integer("budget"));
      }
      if (params.integer("pool") % 2 == 0) return usage_error("snapkv: pool is even, expected odd");
      return std::make_unique<KvSnap>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
