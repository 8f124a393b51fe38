// SPDX-License-Identifier: Apache-2.0
// The adjoint of the forward pass, written by hand, for a model whose matrices may be dense or
// coded: how a scalar L of the logits changes with the stream between two layers and with every
// matrix. There is no tape of the model: a layer is run again from the stream that entered it,
// keeps what its own adjoint needs, and is done.
//
// What differentiates: everything that LayerDesc says but a sliced stream. The choice of experts
// is held constant, their shares are not. Of coded matrices the gradients are those of the decoded
// weights. Inputs that are rounded to integers have no derivative and are refused.
#pragma once

#include <span>
#include <vector>

#include "base/status.h"
#include "model/backward_ops.h"
#include "model/forward.h"
#include "model/model_files.h"
#include "model/rope.h"

namespace quern {

// What caches code of one sequence, or dL/d of it: keys, normed but before RoPE, and values,
// [n, n_kv_heads * d_head].
struct KeysAndValues {
  MatrixView<const float> k, v;
};

// Gradients of matrices, as the two factors that they are products of, and those of heads.
class GradientTap {
 public:
  virtual ~GradientTap() = default;
  // A matrix made y = x W^T + b of rows x [n, n_in]; dy [n, n_out] is dL/dy. So dL/dW is dy^T x,
  // and dL/db the sum of the rows of dy.
  virtual void linear(const WeightId& id, MatrixView<const float> x,
                      MatrixView<const float> dy) = 0;
  // The heads of a layer, and dL/d(heads).
  virtual void heads(int /*layer*/, const KeysAndValues& /*x*/, const KeysAndValues& /*dx*/) {}
};

// Fails where a layer, or what stands around the layers, has no adjoint here, saying why.
Status check_differentiable(const ModelDesc& model, int layer, const LayerWeights& weights);
Status check_differentiable(const EndWeights& ends);

// One layer on one sequence, and its adjoint.
class LayerBackward {
 public:
  // Runs the layer on h [n, d_model], positions from 0, in float. What `context` and `weights` name
  // must outlive this.
  LayerBackward(const LayerContext& context, const LayerWeights& weights,
                MatrixView<const float> h);

  const Matrix<float>& output() const { return output_; }  // [n, d_model]

  // dh [n, d_model]: dL/d(output) before, dL/dh after. The matrices are shown from the last to the
  // first. May be called for several L.
  void run(MatrixView<float> dh, GradientTap& tap) const;

 private:
  // One feed-forward network on some of the tokens.
  struct FeedForward {
    const ExpertWeights* weights = nullptr;
    Role gate_role = Role::kGate, up_role = Role::kUp, down_role = Role::kDown;
    int expert = -1;
    std::vector<int64_t> tokens;  // that it reads, of an expert that a router chooses
    Matrix<float> x, gate, up;    // [n, d_model], [n, d_ffn] twice; before the activation
    Matrix<float> middle, out;    // [n, d_ffn] as down reads it, [n, d_model]
  };
  WeightId id(Role role, int expert = -1) const { return {role, layer_, expert}; }
  const RopeTable* rope(int64_t n_rows) const;
  void turn(MatrixView<float> x, const RopeTable& table) const;
  void run_attention();
  void run_network(FeedForward& network) const;
  void run_mixture();
  void attention_backward(MatrixView<const float> dy, MatrixView<float> dx, GradientTap& tap) const;
  void mlp_backward(MatrixView<const float> dy, MatrixView<float> dx, GradientTap& tap) const;
  void network_backward(const FeedForward& network, MatrixView<const float> dy,
                        MatrixView<float> dx, GradientTap& tap) const;
  void mixture_backward(MatrixView<const float> dy, MatrixView<float> dx, GradientTap& tap) const;
  void shared_backward(MatrixView<const float> dy, MatrixView<float> dx, GradientTap& tap) const;

  const ModelDesc& model_;
  const LayerDesc& desc_;
  const LayerWeights& weights_;
  RopeTables& rope_tables_;
  int layer_;

  Matrix<float> input_, attn_in_;  // [n, d_model]; the second behind norm and operators
  Matrix<float> q_, k_;            // as projected, where they are normed
  Matrix<float> keys_;             // before RoPE
  Heads heads_;
  Matrix<float> mixed_, attn_out_;       // what o reads; what it makes
  Matrix<float> middle_, mlp_in_;        // the stream before the MLP; behind norm and operators
  Matrix<float> probabilities_, share_;  // of experts, [n, n_experts]: all, chosen
  Matrix<float> shared_share_;           // [n, 1]
  std::vector<FeedForward> networks_;    // one, or those of experts that a token reached
  FeedForward shared_;
  Matrix<float> mlp_out_, output_;
};

// Around the layers: d holds dL/d(what the head reads) before and dL/dh after, h [n, d_model] the
// stream behind the last layer.
void finish_backward(const ModelDesc& model, const EndWeights& ends, MatrixView<const float> h,
                     MatrixView<float> d);
// d holds dL/d(stream before the first layer) before, and after dL/d(rows of the embedding).
void embed_backward(const ModelDesc& model, const EndWeights& ends, MatrixView<float> d);

}  // namespace quern
