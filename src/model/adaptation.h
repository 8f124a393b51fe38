// SPDX-License-Identifier: Apache-2.0
// Attention over a cache whose pages get as many bits as attention asks for: rows in parts that end
// where pages are full, so that what a query sees depends on the text before it alone.
#pragma once

#include <cstdint>

#include "kvcache/kv_cache.h"
#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern {

// Consecutive positions of one sequence: queries, keys and values as attention reads them, and
// where its results go, [n, n_heads * d_head].
struct AdaptingRows {
  const AttentionDesc* attention = nullptr;
  LayerKv* kv = nullptr;
  int64_t position = 0;
  MatrixView<const float> q, k, v;
  MatrixView<float> z;
};
void attend_adapting(const AdaptingRows& rows);

}  // namespace quern
