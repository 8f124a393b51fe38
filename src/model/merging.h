// SPDX-License-Identifier: Apache-2.0
// Attention over a cache whose heads merge: a query sees the newest slot as its own token left
// it, so rows go in runs that end before a token joins. What comes out does not depend on how a
// text was cut into calls. A head that never joins takes rows as a plain cache does, one that
// joins often goes token by token, over as many fewer slots.
#pragma once

#include <cstdint>

#include "kvcache/kv_cache.h"
#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern {

// Consecutive positions of one sequence: [n, heads * d_head] of queries, keys and values.
struct MergingRows {
  const AttentionDesc* attention = nullptr;
  LayerKv* kv = nullptr;
  int64_t position = 0;
  MatrixView<float> q, k, v;
  uint8_t* joins = nullptr;  // [n, n_kv_heads]
};

// Before RoPE, of normed heads: decides, and keys and values become the means of their slots
// with them.
void pool_rows(const MergingRows& rows);

// Behind RoPE: stores the means and attends; z [n, n_heads * d_head].
void attend_merging(const MergingRows& rows, MatrixView<float> z);

}  // namespace quern
