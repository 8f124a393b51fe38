// SPDX-License-Identifier: Apache-2.0
// less: another policy, whose dropped tokens are absorbed into a state of constant size that every
// query reads beside what is left (LESS, arXiv 2402.09398). kv_feature_maps.h has the state and the
// maps into it, which are trained; this is what decides. Scores are those of the other policy: of
// the softmax over what is left, as when the maps were trained, so that a state of zeros is that
// policy to the bit.
#include "kvcache/kv_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"policy", spec::ParamKind::kCall, "", 0, 0, "", "which tokens are left"},
};

class KvLess final : public KvPolicy {
 public:
  KvLess(std::string text, std::unique_ptr<KvPolicy> policy)
      : text_(std::move(text)), policy_(std::move(policy)) {}

  std::string spec() const override { return text_; }
  int64_t budget() const override { return policy_->budget(); }
  int64_t most_slots() const override { return policy_->most_slots(); }
  int64_t next_decision(int64_t position) const override {
    return policy_->next_decision(position);
  }
  Status check_coded() const override { return policy_->check_coded(); }
  bool reads_weights() const override { return policy_->reads_weights(); }
  int64_t n_prompt_queries() const override { return policy_->n_prompt_queries(); }
  int64_t n_moving() const override { return policy_->n_moving(); }
  // What was dropped is at any distance, and the maps know those they were trained at.
  int64_t most_distance() const override { return kNever; }
  bool absorbs() const override { return true; }
  void observe(const KvWeights& weights, float* scores) const override {
    policy_->observe(weights, scores);
  }
  void choose(std::span<const float> scores, std::vector<int32_t>& keep) const override {
    policy_->choose(scores, keep);
  }

 private:
  std::string text_;
  std::unique_ptr<KvPolicy> policy_;
};

constexpr std::string_view kExamples[] = {"less(h2o(budget=60))", "less(streaming(window=60))",
                                          "less(h2o(budget=70, window=10, every=1))",
                                          "less(snapkv(budget=60, prompt=130))"};

}  // namespace

extern const KvPolicyInfo kv_less_policy_info;
const KvPolicyInfo kv_less_policy_info = {
    .name = "less",
    .params = kParams,
    .summary = "another policy, and a state of low rank of what it drops (LESS)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvPolicy>> {
      QUERN_ASSIGN(std::unique_ptr<KvPolicy> policy, make_kv_policy(params.call("policy")));
      if (policy->absorbs()) {
        return usage_error("less({}): what is dropped is absorbed already", policy->spec());
      }
      QUERN_ASSIGN(std::string text, params.text_around(policy->spec()));
      return std::make_unique<KvLess>(std::move(text), std::move(policy));
    },
    .examples = kExamples,
};

}  // namespace quern
