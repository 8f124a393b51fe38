// SPDX-License-Identifier: Apache-2.0
// One decoder layer on a batch of token rows: what generation runs and what calibration runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/kv_cache.h"
#include "model/fuse.h"
#include "model/layer_desc.h"
#include "model/linear.h"
#include "model/norms.h"
#include "model/online.h"
#include "model/roles.h"
#include "model/spent_time.h"
#include "tensor/matrix.h"

namespace quern {

struct ExpertWeights {
  LinearWeight gate, up, down;
};

struct LayerWeights {
  NormWeight attn_norm, attn_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm;
  LinearWeight q, k, v, o;
  std::vector<ExpertWeights> experts;  // one for a dense MLP
  LinearWeight router, shared_router;
  LinearWeight attn_skip, mlp_skip;  // of a sliced stream
  ExpertWeights shared;
  OnlineOperators online;

  LinearWeight& at(Role role, int expert);
  const LinearWeight& at(Role role, int expert) const {
    return const_cast<LayerWeights*>(this)->at(role, expert);
  }
};

// Consecutive rows of the batch that are consecutive positions of one sequence.
struct SequenceRows {
  LayerKv* kv = nullptr;
  int64_t position = 0;  // of the first row
  int64_t n_rows = 0;
  int64_t context = 0;  // longest position in use, for RoPE variants that depend on it
};

// Inputs of linear layers, for calibration. Each call shows rows that one weight group reads.
class LayerTap {
 public:
  virtual ~LayerTap() = default;
  // `role` is the first of the group that reads x: kQ (q, k, v), kO, kGate (gate, up), kDown, and
  // the shared ones. `expert` -1 unless one of several. Returning false ends the layer early.
  virtual bool input(Role role, int expert, MatrixView<const float> x) = 0;
  // Heads of queries, keys and values, normed but before RoPE: [n_rows, heads * d_head]. Returning
  // false ends the layer early.
  virtual bool heads(MatrixView<const float> /*q*/, MatrixView<const float> /*k*/,
                     MatrixView<const float> /*v*/) {
    return true;
  }
  // A sliced stream behind attention. Returning false ends the layer early.
  virtual bool middle(MatrixView<const float> /*h*/) { return true; }
};

class RopeTables;

struct LayerContext {
  const ModelDesc* model = nullptr;
  RopeTables* rope = nullptr;  // kept between layers
  int layer = 0;
  SpentTime* online_time = nullptr;     // in online operators
  SpentTime* attention_time = nullptr;  // of queries over the cache
};

// h [n_rows, d_model] <- layer(h), in place, online operators active. False if the tap ended it. A
// sliced stream fills the first columns, as many as the weights say, and the others are zero.
bool forward_layer(const LayerContext& context, const LayerWeights& weights,
                   std::span<const SequenceRows> sequences, MatrixView<float> h,
                   LayerTap* tap = nullptr);

// Router logits [n_experts] -> shares of the top_k experts (ties to the lower index), zero
// elsewhere.
void choose_experts(const MlpDesc& mlp, float* logits);

}  // namespace quern
