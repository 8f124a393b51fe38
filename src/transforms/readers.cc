// SPDX-License-Identifier: Apache-2.0
#include "transforms/readers.h"

#include <algorithm>

namespace quern {

std::vector<Reader> readers(const LayerDesc& layer, Site site) {
  const MlpDesc& mlp = layer.mlp;
  std::vector<Reader> list;
  const auto add_per_expert = [&](Role role) {
    if (mlp.n_experts == 0) list.push_back({role, -1});
    for (int e = 0; e < static_cast<int>(mlp.n_experts); ++e) list.push_back({role, e});
  };
  switch (site) {
    case Site::kAttnIn:
      list = {{Role::kQ}, {Role::kK}, {Role::kV}};
      break;
    case Site::kHeads:
      list = {{Role::kO}};
      break;
    case Site::kMlpIn:
      if (mlp.n_experts > 0) list.push_back({Role::kRouter});
      if (mlp.gated) add_per_expert(Role::kGate);
      add_per_expert(Role::kUp);
      if (mlp.d_ffn_shared > 0) {
        if (mlp.gated) list.push_back({Role::kSharedGate});
        list.push_back({Role::kSharedUp});
        if (mlp.shared_router) list.push_back({Role::kSharedRouter});
      }
      break;
    case Site::kFfn:
      add_per_expert(Role::kDown);
      break;
    default:
      break;
  }
  return list;
}

template <class T>
void share_in_kv_groups(const AttentionDesc& attention, std::vector<T>& values) {
  const int64_t d = attention.d_head, per_kv = attention.n_heads / attention.n_kv_heads;
  for (int64_t first = 0; first < attention.n_heads; first += per_kv) {
    for (int64_t j = 0; j < d; ++j) {
      const auto at = [&](int64_t head) -> T& {
        return values[static_cast<size_t>((first + head) * d + j)];
      };
      T most = at(0);
      for (int64_t head = 1; head < per_kv; ++head) most = std::max(most, at(head));
      for (int64_t head = 0; head < per_kv; ++head) at(head) = most;
    }
  }
}

template void share_in_kv_groups(const AttentionDesc&, std::vector<float>&);
template void share_in_kv_groups(const AttentionDesc&, std::vector<double>&);

}  // namespace quern
