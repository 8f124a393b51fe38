// SPDX-License-Identifier: Apache-2.0
// Attention over a cache that evicts: rows in parts that end where the policy decides, so that what
// a query sees depends on the text before it alone.
#pragma once

#include <cstdint>
#include <functional>

#include "kvcache/kv_cache.h"
#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern {

// Consecutive positions of one sequence: queries, keys and values as attention reads them, and
// where its results go, [n, n_heads * d_head].
struct EvictingRows {
  const AttentionDesc* attention = nullptr;
  int64_t layer = 0;
  LayerKv* kv = nullptr;
  int64_t position = 0;
  MatrixView<const float> q, k, v;
  MatrixView<float> z;
  // Makes of keys before RoPE those of consecutive positions from `position` on.
  std::function<void(MatrixView<float> k, int64_t position)> place;
};
void attend_evicting(const EvictingRows& rows);

// The prompt ends here: the decision of a policy that waits for this, once.
void end_prompt(const AttentionDesc& attention, int64_t layer, LayerKv& kv);

}  // namespace quern
