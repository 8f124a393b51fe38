// SPDX-License-Identifier: Apache-2.0
// h2o: the newest tokens and those that attention has met most (H2O, arXiv 2306.14048). A score is
// the sum of the softmax weights of all queries so far, of all heads that share a KV head.
#include "kvcache/kv_scored_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"budget", spec::ParamKind::kInt, "", 1, 1 << 24, "", "tokens that stay"},
    {"window", spec::ParamKind::kInt, "0", 0, 1 << 24, "", "newest of them; 0: half of budget"},
    kEveryParam,
};

class KvH2o final : public KvScoredPolicy {
 public:
  explicit KvH2o(const spec::Params& params)
      : KvScoredPolicy(params, params.integer("budget") / 2) {}
};

constexpr std::string_view kExamples[] = {"h2o(budget=60)", "h2o(budget=70, window=10, every=1)",
                                          "h2o(64, window=64)"};

}  // namespace

extern const KvPolicyInfo kv_h2o_policy_info;
const KvPolicyInfo kv_h2o_policy_info = {
    .name = "h2o",
    .params = kParams,
    .summary = "the newest tokens and those that attention has met most (H2O)",
    .make = [](const spec::Params& params) { return make_scored_policy<KvH2o>("h2o", params); },
    .examples = kExamples,
};

}  // namespace quern
