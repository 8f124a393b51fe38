// SPDX-License-Identifier: Apache-2.0
// What the cache of one layer knows of its heads beside its recipe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvcache/kv_codec.h"
#include "kvcache/kv_feature_maps.h"
#include "kvcache/kv_merge.h"
#include "kvcache/kv_rope.h"

namespace quern {

struct KvShape {
  int64_t n_kv_heads = 0;
  int64_t d_head = 0;
  std::shared_ptr<const KvRope> rope;  // for recipes that code keys before it
  // Codecs with tables, by head; empty: the recipe's own.
  std::vector<std::shared_ptr<const KvCodec>> keys, values;
  std::shared_ptr<const KvFeatureMaps> maps;  // for policies that absorb
  std::shared_ptr<const KvMerge> merge;       // null: heads do not merge
  int64_t n_heads = 0;                        // of queries; 0: as many as of keys

  // Numbers of all heads' queries, and of all heads' keys or values, at one position.
  int64_t query_width() const { return (n_heads > 0 ? n_heads : n_kv_heads) * d_head; }
  int64_t key_width() const { return n_kv_heads * d_head; }
};

}  // namespace quern
