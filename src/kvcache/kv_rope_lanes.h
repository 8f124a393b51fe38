// SPDX-License-Identifier: Apache-2.0
// The loop of kv_rope.h, for whatever vectors the including source is compiled for.
#pragma once

#include "kvcache/kv_rope.h"

namespace quern {

inline void turn_pair_lanes(const RopePair& by, float* __restrict a, float* __restrict b) {
  for (int64_t i = 0; i < kKeyBlock; ++i) {
    const float c = by.first_cos * by.cosine[i] - by.first_sin * by.sine[i];
    const float s = by.sign * (by.first_sin * by.cosine[i] + by.first_cos * by.sine[i]);
    const float x = a[i], y = b[i];
    a[i] = x * c - y * s;
    b[i] = y * c + x * s;
  }
}

}  // namespace quern
