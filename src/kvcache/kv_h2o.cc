// SPDX-License-Identifier: Apache-2.0
// h2o: the newest tokens and those that attention has met most (H2O, arXiv 2306.14048). A score is
// the sum of the softmax weights of all queries so far, of all heads that share a KV head.
#include "kvcache/kv_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"budget", spec::ParamKind::kInt, "", 1, 1 << 24, "", "tokens that stay"},
    {"window", spec::ParamKind::kInt, "0", 0, 1 << 24, "", "newest of them; 0: half of budget"},
    kEveryParam,
};

class KvH2o final : public KvPolicy {
 public:
  explicit KvH2o(const spec::Params& params)
      : text_(policy_text(params)),
        budget_(params.integer("budget")),
        window_(params.integer("window") > 0 ? params.integer("window") : budget_ / 2),
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

constexpr std::string_view kExamples[] = {"h2o(budget=60)", "h2o(budget=70, window=10, every=1)",
                                          "h2o(64, window=64)"};

}  // namespace

extern const KvPolicyInfo kv_h2o_policy_info;
const KvPolicyInfo kv_h2o_policy_info = {
    .name = "h2o",
    .params = kParams,
    .summary = "the newest tokens and those that attention has met most (H2O)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvPolicy>> {
      if (params.integer("window") > params.integer("budget")) {
        return usage_error("h2o: a window of {} in a budget of {}", params.integer("window"),
                           params.integer("budget"));
      }
      return std::make_unique<KvH2o>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
