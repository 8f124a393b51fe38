// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/kernels.h"
#include "spec/registry.h"

namespace quern {

#define QUERN_KV_POLICY(name) extern const KvPolicyInfo name##_policy_info;
#include "kvcache/policies.inc"
#undef QUERN_KV_POLICY

std::span<const KvPolicyInfo> kv_policies() {
  static const KvPolicyInfo rows[] = {
#define QUERN_KV_POLICY(name) name##_policy_info,
#include "kvcache/policies.inc"
#undef QUERN_KV_POLICY
  };
  return rows;
}

Result<std::unique_ptr<KvPolicy>> make_kv_policy(const spec::Call& call) {
  return spec::make(kv_policies(), call, "kv policy");
}

void KvPolicy::observe(const KvWeights& w, float* scores) const {
  for (int64_t i = 0; i < w.n_q * w.n_heads; ++i) {
    kernels().add(w.weights + i * w.n_slots, w.n_slots, scores);
  }
}

void keep_best(std::span<const float> scores, int64_t budget, int64_t window,
               std::vector<int32_t>& keep) {
  const auto n = static_cast<int64_t>(scores.size());
  const int64_t n_old = std::max<int64_t>(0, n - window);
  const int64_t n_best = std::clamp<int64_t>(budget - window, 0, n_old);
  keep.resize(static_cast<size_t>(n_old));
  std::iota(keep.begin(), keep.end(), 0);
  const auto score = [&](int32_t slot) {  // of no number: the lowest
    const float x = scores[static_cast<size_t>(slot)];
    return std::isnan(x) ? -std::numeric_limits<float>::infinity() : x;
  };
  const auto is_better = [&](int32_t a, int32_t b) {
    const float x = score(a), y = score(b);
    return x != y ? x > y : a < b;
  };
  std::nth_element(keep.begin(), keep.begin() + n_best, keep.end(), is_better);
  keep.resize(static_cast<size_t>(n_best));
  std::sort(keep.begin(), keep.end());
  for (int64_t i = n_old; i < n; ++i) keep.push_back(static_cast<int32_t>(i));
}

std::string policy_text(const spec::Params& params) { return spec::print(params.canonical()); }

}  // namespace quern
