// SPDX-License-Identifier: Apache-2.0
// keyformer: the newest tokens and those of the largest sums of a noisy softmax (Keyformer, arXiv
// 2403.09054). With scores x, Gumbel noise g and a temperature tau that grows,
//   f_j += softmax_j((x + g) / tau),   exp(x + g) = p / e,  p = softmax(x), e exponential,
// so that the weights that attention has anyway are enough. Attention itself has no noise. The
// noise is a function of (seed, layer, head, position of the query, position of the key).
#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "kvcache/kv_scored_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"budget", spec::ParamKind::kInt, "", 1, 1 << 24, "", "tokens that stay"},
    {"window", spec::ParamKind::kInt, "0", 0, 1 << 24, "", "newest of them; 0: 30 % of budget"},
    {"noise", spec::ParamKind::kChoice, "gumbel", 0, 0, "gumbel|none", "on the scores"},
    {"tau", spec::ParamKind::kNumber, "2", 1, 1000, "", "temperature after `steps`, 1 before"},
    {"steps", spec::ParamKind::kInt, "100", 1, 1 << 24, "", "positions past the budget until then"},
    {"seed", spec::ParamKind::kInt, "0", 0, 1 << 30, "", "of the noise"},
    kEveryParam,
};

class KvKeyformer final : public KvScoredPolicy {
 public:
  explicit KvKeyformer(const spec::Params& params)
      : KvScoredPolicy(params, params.integer("budget") * 3 / 10),
        steps_(params.integer("steps")),
        seed_(static_cast<uint64_t>(params.integer("seed"))),
        tau_(params.number("tau")),
        has_noise_(params.word("noise") == "gumbel") {}

  void observe(const KvWeights& w, float* scores) const override {
    std::vector<double> row(static_cast<size_t>(w.n_slots));
    for (int64_t i = 0; i < w.n_q; ++i) {
      const int64_t position = w.position + i;
      const double power = 1 / temperature(position);
      for (int64_t h = 0; h < w.n_heads; ++h) {
        const float* p = w.weights + (i * w.n_heads + h) * w.n_slots;
        const uint64_t key = row_key(w.layer, w.first_head + h, position);
        double total = 0;
        for (int64_t j = 0; j < w.n_slots; ++j) {
          double x = p[j];
          if (has_noise_ && x > 0) x /= exponential(key, w.positions[static_cast<size_t>(j)]);
          if (power != 1) x = std::pow(x, power);
          total += row[static_cast<size_t>(j)] = x;
        }
        if (!(total > 0)) continue;
        for (int64_t j = 0; j < w.n_slots; ++j) {
          scores[j] += static_cast<float>(row[static_cast<size_t>(j)] / total);
        }
      }
    }
  }

 private:
  double temperature(int64_t position) const {
    const int64_t past = std::clamp<int64_t>(position - budget(), 0, steps_);
    return 1 + (tau_ - 1) * static_cast<double>(past) / static_cast<double>(steps_);
  }
  uint64_t row_key(int64_t layer, int64_t head, int64_t position) const {
    uint64_t key = seed_;
    for (const int64_t part : {layer, head, position}) {
      key = splitmix64(key) ^ static_cast<uint64_t>(part);
    }
    return splitmix64(key);
  }
  // -log of a uniform number in (0, 1): exp(-g) for a Gumbel g.
  static double exponential(uint64_t key, int32_t position) {
    key += static_cast<uint64_t>(position) * 0xd1342543de82ef95u;
    return -std::log((static_cast<double>(splitmix64(key) >> 12) + .5) * 0x1p-52);
  }

  int64_t steps_;
  uint64_t seed_;
  double tau_;
  bool has_noise_;
};

constexpr std::string_view kExamples[] = {"keyformer(budget=60)",
                                          "keyformer(70, window=10, seed=3, every=1)",
                                          "keyformer(64, noise=none, tau=1)"};

}  // namespace

extern const KvPolicyInfo kv_keyformer_policy_info;
const KvPolicyInfo kv_keyformer_policy_info = {
    .name = "keyformer",
    .params = kParams,
    .summary = "the newest tokens and those of a noisy softmax (Keyformer)",
    .make =
        [](const spec::Params& params) {
          return make_scored_policy<KvKeyformer>("keyformer", params);
        },
    .examples = kExamples,
};

}  // namespace quern
