// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/check.h"
#include "model/forward.h"

namespace quern {

LinearWeight& LayerWeights::at(Role role, int expert) {
  ExpertWeights& one = experts[static_cast<size_t>(std::max(expert, 0))];
  switch (role) {
    case Role::kQ:
      return q;
    case Role::kK:
      return k;
    case Role::kV:
      return v;
    case Role::kO:
      return o;
    case Role::kGate:
      return one.gate;
    case Role::kUp:
      return one.up;
    case Role::kDown:
      return one.down;
    case Role::kRouter:
      return router;
    case Role::kSharedRouter:
      return shared_router;
    case Role::kAttnSkip:
      return attn_skip;
    case Role::kMlpSkip:
      return mlp_skip;
    case Role::kSharedGate:
      return shared.gate;
    case Role::kSharedUp:
      return shared.up;
    case Role::kSharedDown:
      return shared.down;
    default:
      QUERN_CHECK(!"not a linear role of a layer");
      return q;
  }
}

}  // namespace quern
