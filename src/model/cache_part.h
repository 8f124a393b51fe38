// SPDX-License-Identifier: Apache-2.0
// Attention of consecutive queries over a cache that decides behind some of them what is kept, and
// how: parts of a text between two decisions.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/kv_cache.h"
#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern {

class CachePart {
 public:
  // The first query is at `position`; the others of the part follow.
  CachePart(const AttentionDesc& attention, LayerKv& kv, int64_t position)
      : a_(attention), kv_(kv), position_(position) {}

  // As many queries as may go together over n slots.
  static int64_t most_queries(const AttentionDesc& attention, int64_t n_slots, bool with_weights);

  // z [n, n_heads * d_head] <- results of queries q, keeping the weights of the softmax if asked.
  void attend(MatrixView<const float> q, MatrixView<float> z, bool with_weights);
  // Of the heads that share a KV head: [n, heads, n_slots].
  const float* weights(int64_t kv_head) const {
    return weights_.data() + kv_head * static_cast<int64_t>(weights_.size()) / a_.n_kv_heads;
  }
  int64_t heads() const { return a_.n_heads / a_.n_kv_heads; }  // that share a KV head

 private:
  static constexpr int64_t kRows = 64;  // queries times heads of a part, as elsewhere
  struct Head {
    LayerKv::Codes codes;
    LayerKv::Exact exact;
    std::array<int64_t, kRows> begin{}, coded{}, end{};
    std::array<KvSegment, 2> segments{};
  };
  void look(int64_t head, int64_t n, Head& one) const;
  // Merges what was dropped into z; lse [n_kv_heads, n, heads of a group].
  void read_absorbed(MatrixView<const float> q, std::span<const float> lse,
                     MatrixView<float> z) const;

  const AttentionDesc& a_;
  LayerKv& kv_;
  int64_t position_;
  std::vector<float> weights_;  // [n_kv_heads, n, heads, n_slots]
};

}  // namespace quern
