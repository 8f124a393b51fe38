// SPDX-License-Identifier: Apache-2.0
// The decoder as its description defines it: whole sequence, plain loops, no cache. It is the
// oracle of the runtime and, in double, of every change of basis.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/dense_weights.h"
#include "model/layer_desc.h"
#include "model/roles.h"
#include "tensor/matrix.h"

namespace quern {

// Each is called, if set, where its tensor is about to be used, and may change it in place. Rows
// are tokens in order, but for `down_input` of an expert: there they are the tokens routed to it.
template <class T>
struct ReferenceHooks {
  std::function<void(Matrix<T>& h)> after_embedding;           // [n, d_model]
  std::function<void(Matrix<T>& h)> before_final_norm;         // [n, d_model]
  std::function<void(Matrix<T>& h)> before_head;               // [n, d_model]
  std::function<void(int layer, Matrix<T>& x)> qkv_input;      // [n, d_model]
  std::function<void(int layer, Matrix<T>& q)> q;              // [n, n_heads * d_head]; after RoPE
  std::function<void(int layer, Matrix<T>& k)> k_before_rope;  // [n, n_kv_heads * d_head]; normed
  std::function<void(int layer, Matrix<T>& k)> k;              // [n, n_kv_heads * d_head]
  std::function<void(int layer, Matrix<T>& v)> v;              // [n, n_kv_heads * d_head]
  std::function<void(int layer, Matrix<T>& x)> o_input;        // [n, n_heads * d_head]
  std::function<void(int layer, Matrix<T>& x)> mlp_input;      // [n, d_model]
  std::function<void(const WeightId& down, Matrix<T>& x)> down_input;  // [n, d_ffn]
  std::function<void(int layer, Matrix<T>& h)> layer_output;           // [n, d_model]
};

// Logits of every position, [n, n_vocab]. Ids must be in the vocabulary, and no more than the
// position table (if there is one) has rows for.
template <class T>
Matrix<T> reference_logits(const ModelDesc& model, const DenseWeights<T>& weights,
                           std::span<const int32_t> ids, const ReferenceHooks<T>& hooks = {});

}  // namespace quern
