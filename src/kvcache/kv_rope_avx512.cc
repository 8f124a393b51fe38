// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_rope_lanes.h"

namespace quern {

void turn_pair_avx512(const RopePair& by, float* a, float* b) { turn_pair_lanes(by, a, b); }

}  // namespace quern
