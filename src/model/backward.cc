// SPDX-License-Identifier: Apache-2.0
#include "model/backward.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "model/norms.h"
#include "model/rope.h"
#include "model/row_passes.h"

namespace quern {
namespace {

Matrix<float> product(const LinearWeight& weight, const Matrix<float>& x) {
  Matrix<float> y(x.rows(), weight.n_out);
  linear(weight, x.view(), y.view());
  return y;
}

Matrix<float> copy_of(MatrixView<const float> x) {
  Matrix<float> copy(x.rows, x.cols);
  for (int64_t i = 0; i < x.rows; ++i) std::copy_n(x.row(i), x.cols, copy.row(i));
  return copy;
}

Matrix<float> normed(const NormDesc& norm, const NormWeight& weight, const Matrix<float>& x) {
  Matrix<float> y(x.rows(), x.cols());
  apply_norm(norm, weight, x.view(), y.view());
  return y;
}

void add(MatrixView<const float> x, MatrixView<float> y) {
  for_rows(y, [&](int64_t i) { kernels().add(x.row(i), y.cols, y.row(i)); });
}

// Rows of x at `at`, and back: the rows added to y.
Matrix<float> gather(MatrixView<const float> x, const std::vector<int64_t>& at) {
  Matrix<float> rows(static_cast<int64_t>(at.size()), x.cols);
  for (int64_t i = 0; i < rows.rows(); ++i) {
    std::copy_n(x.row(at[static_cast<size_t>(i)]), x.cols, rows.row(i));
  }
  return rows;
}
void scatter_add(const Matrix<float>& rows, const std::vector<int64_t>& at, MatrixView<float> y) {
  for (int64_t i = 0; i < rows.rows(); ++i) {
    kernels().add(rows.row(i), y.cols, y.row(at[static_cast<size_t>(i)]));
  }
}

// Each head of each row as a row of its own.
MatrixView<float> by_head(Matrix<float>& x, int64_t d_head) {
  return {x.data(), x.rows() * (x.cols() / d_head), d_head};
}
MatrixView<const float> by_head(const Matrix<float>& x, int64_t d_head) {
  return {x.data(), x.rows() * (x.cols() / d_head), d_head};
}

bool is_orthogonal(const Chain& chain) {
  return std::all_of(chain.operators().begin(), chain.operators().end(),
                     [](const OperatorPtr& op) { return op->is_orthogonal(); });
}

// x -> x M^T has the adjoint dy -> dy M, which for orthogonal M is the inverse.
void online_backward(const Chain& chain, MatrixView<float> d) {
  apply_online(chain, d, nullptr, Online::kInverse);
}

bool rounds_inputs(const LinearWeight& weight) {
  return weight.rounding != nullptr || weight.is_int8() || weight.is_bf16();
}

}  // namespace

Status check_differentiable(const ModelDesc& model, int layer, const LayerWeights& weights) {
  if (model.layers[static_cast<size_t>(layer)].is_sliced()) {
    return error("layers.{}: no gradients of a sliced stream", layer);
  }
  const OnlineOperators& online = weights.online;
  for (const Chain* chain : {&online.attn_in, &online.heads, &online.mlp_in, &online.ffn}) {
    if (!is_orthogonal(*chain)) {
      return error("layers.{}: no gradients through online operators that are not orthogonal",
                   layer);
    }
  }
  for (const WeightId& id : weight_ids(model)) {
    if (id.layer == layer && is_linear(id.role) && rounds_inputs(weights.at(id.role, id.expert))) {
      return error("{}: no gradients of a matrix that rounds what it reads", to_string(id));
    }
  }
  return {};
}

Status check_differentiable(const EndWeights& ends) {
  if (!is_orthogonal(ends.residual)) {
    return error("no gradients through operators of the stream that are not orthogonal");
  }
  if (rounds_inputs(ends.head)) return error("lm_head: no gradients where inputs are rounded");
  return {};
}

LayerBackward::LayerBackward(const LayerContext& context, const LayerWeights& weights,
                             MatrixView<const float> h)
    : model_(*context.model),
      desc_(model_.layers[static_cast<size_t>(context.layer)]),
      weights_(weights),
      rope_tables_(*context.rope),
      layer_(context.layer),
      input_(copy_of(h)) {
  run_attention();
  const Matrix<float> from_attention =
      normed(desc_.attn_post_norm, weights_.attn_post_norm, attn_out_);
  middle_ = input_;
  if (!desc_.parallel) add(from_attention.view(), middle_.view());
  mlp_in_ = normed(desc_.mlp_norm, weights_.mlp_norm, middle_);
  apply_online(weights_.online.mlp_in, mlp_in_.view());
  if (desc_.mlp.n_experts > 0) {
    run_mixture();
  } else {
    networks_.push_back({.weights = &weights_.experts[0], .x = mlp_in_});
    run_network(networks_[0]);
    mlp_out_ = networks_[0].out;
  }
  output_ = normed(desc_.mlp_post_norm, weights_.mlp_post_norm, mlp_out_);
  add(middle_.view(), output_.view());
  if (desc_.parallel) add(from_attention.view(), output_.view());
}

const RopeTable* LayerBackward::rope(int64_t n_rows) const {
  if (desc_.attention.rope.n_dims == 0) return nullptr;
  const SequenceRows rows{nullptr, 0, n_rows, n_rows};
  return &rope_tables_.at(desc_.attention.rope, {&rows, 1});
}

void LayerBackward::turn(MatrixView<float> x, const RopeTable& table) const {
  const AttentionDesc& a = desc_.attention;
  for_rows(x, [&](int64_t i) {
    for (int64_t c = 0; c < x.cols; c += a.d_head) {
      kernels().rope(table.cosine.row(i), table.sine.row(i), a.rope.n_dims, x.row(i) + c);
    }
  });
}

// Operators on queries and keys leave every score as it is, so they have no part in this.
void LayerBackward::run_attention() {
  const AttentionDesc& a = desc_.attention;
  attn_in_ = normed(desc_.attn_norm, weights_.attn_norm, input_);
  apply_online(weights_.online.attn_in, attn_in_.view());
  heads_ = {product(weights_.q, attn_in_), product(weights_.k, attn_in_),
            product(weights_.v, attn_in_)};
  if (a.qk_norm.kind != NormKind::kNone) {
    q_ = heads_.q;
    k_ = heads_.k;
    apply_norm(a.qk_norm, weights_.q_norm, by_head(q_, a.d_head), by_head(heads_.q, a.d_head));
    apply_norm(a.qk_norm, weights_.k_norm, by_head(k_, a.d_head), by_head(heads_.k, a.d_head));
  }
  keys_ = heads_.k;
  if (const RopeTable* table = rope(input_.rows()); table != nullptr) {
    turn(heads_.q.view(), *table);
    turn(heads_.k.view(), *table);
  }
  mixed_ = attend_whole(a, heads_);
  apply_online(weights_.online.heads, mixed_.view());
  attn_out_ = product(weights_.o, mixed_);
}

void LayerBackward::run_network(FeedForward& network) const {
  const Activation activation = desc_.mlp.activation;
  network.up = product(network.weights->up, network.x);
  if (desc_.mlp.gated) network.gate = product(network.weights->gate, network.x);
  network.middle = desc_.mlp.gated ? network.gate : network.up;
  for_rows(network.middle.view(), [&](int64_t i) {
    float* row = network.middle.row(i);
    if (desc_.mlp.gated) {
      kernels().activate_gated(activation, network.up.row(i), network.up.cols(), row);
    } else {
      kernels().activate(activation, network.up.cols(), row);
    }
  });
  if (network.down_role == Role::kDown) apply_online(weights_.online.ffn, network.middle.view());
  network.out = product(network.weights->down, network.middle);
}

void LayerBackward::run_mixture() {
  const MlpDesc& m = desc_.mlp;
  const int64_t n = mlp_in_.rows();
  share_ = product(weights_.router, mlp_in_);
  probabilities_ = share_;
  for (int64_t i = 0; i < n; ++i) {
    kernels().softmax(1, m.n_experts, probabilities_.row(i), nullptr);
    choose_experts(m, share_.row(i));
  }
  mlp_out_ = Matrix<float>(n, model_.d_model);
  for (int e = 0; e < m.n_experts; ++e) {
    FeedForward network{.weights = &weights_.experts[static_cast<size_t>(e)], .expert = e};
    for (int64_t i = 0; i < n; ++i) {
      if (share_(i, e) != 0) network.tokens.push_back(i);
    }
    if (network.tokens.empty()) continue;
    network.x = gather(mlp_in_.view(), network.tokens);
    run_network(network);
    for (size_t r = 0; r < network.tokens.size(); ++r) {
      const int64_t i = network.tokens[r];
      kernels().axpy(share_(i, e), network.out.row(static_cast<int64_t>(r)), mlp_out_.cols(),
                     mlp_out_.row(i));
    }
    networks_.push_back(std::move(network));
  }
  if (m.d_ffn_shared == 0) return;
  shared_ = {.weights = &weights_.shared,
             .gate_role = Role::kSharedGate,
             .up_role = Role::kSharedUp,
             .down_role = Role::kSharedDown,
             .x = mlp_in_};
  run_network(shared_);
  shared_share_ = Matrix<float>(n, 1);
  if (m.shared_router) shared_share_ = product(weights_.shared_router, mlp_in_);
  for (int64_t i = 0; i < n; ++i) {
    float& share = shared_share_(i, 0);
    share = m.shared_router ? 1.0f / (1.0f + std::exp(-share)) : 1.0f;
    kernels().axpy(share, shared_.out.row(i), mlp_out_.cols(), mlp_out_.row(i));
  }
}

void LayerBackward::run(MatrixView<float> dh, GradientTap& tap) const {
  Matrix<float> dy = copy_of(dh), dx(dh.rows, dh.cols);
  norm_backward(desc_.mlp_post_norm, weights_.mlp_post_norm, mlp_out_.view(), dy.view());
  mlp_backward(dy.view(), dx.view(), tap);
  online_backward(weights_.online.mlp_in, dx.view());
  norm_backward(desc_.mlp_norm, weights_.mlp_norm, middle_.view(), dx.view());
  // Attention's output enters the stream beside the MLP, or before it.
  if (desc_.parallel) dy = copy_of(dh);
  add(dx.view(), dh);
  if (!desc_.parallel) dy = copy_of(dh);
  norm_backward(desc_.attn_post_norm, weights_.attn_post_norm, attn_out_.view(), dy.view());
  dx = Matrix<float>(dh.rows, dh.cols);
  attention_backward(dy.view(), dx.view(), tap);
  online_backward(weights_.online.attn_in, dx.view());
  norm_backward(desc_.attn_norm, weights_.attn_norm, input_.view(), dx.view());
  add(dx.view(), dh);
}

void LayerBackward::attention_backward(MatrixView<const float> dy, MatrixView<float> dx,
                                       GradientTap& tap) const {
  const AttentionDesc& a = desc_.attention;
  tap.linear(id(Role::kO), mixed_.view(), dy);
  Matrix<float> d_mixed(mixed_.rows(), mixed_.cols());
  linear_backward(weights_.o, dy, d_mixed.view());
  online_backward(weights_.online.heads, d_mixed.view());
  Heads d = attend_backward(a, heads_, d_mixed.view());
  if (const RopeTable* table = rope(dy.rows); table != nullptr) {
    // The adjoint of a turn, times its magnitude, turns back.
    RopeTable back = *table;
    for (int64_t i = 0; i < back.sine.rows() * back.sine.cols(); ++i) back.sine.data()[i] *= -1;
    turn(d.q.view(), back);
    turn(d.k.view(), back);
  }
  tap.heads(layer_, {keys_.view(), heads_.v.view()}, {d.k.view(), d.v.view()});
  if (a.qk_norm.kind != NormKind::kNone) {
    norm_backward(a.qk_norm, weights_.q_norm, by_head(q_, a.d_head), by_head(d.q, a.d_head));
    norm_backward(a.qk_norm, weights_.k_norm, by_head(k_, a.d_head), by_head(d.k, a.d_head));
  }
  const auto pass = [&](Role role, const LinearWeight& weight, const Matrix<float>& d_head) {
    tap.linear(id(role), attn_in_.view(), d_head.view());
    linear_backward(weight, d_head.view(), dx);
  };
  pass(Role::kV, weights_.v, d.v);
  pass(Role::kK, weights_.k, d.k);
  pass(Role::kQ, weights_.q, d.q);
}

void LayerBackward::mlp_backward(MatrixView<const float> dy, MatrixView<float> dx,
                                 GradientTap& tap) const {
  if (desc_.mlp.n_experts == 0) return network_backward(networks_[0], dy, dx, tap);
  if (desc_.mlp.d_ffn_shared > 0) shared_backward(dy, dx, tap);
  mixture_backward(dy, dx, tap);
}

void LayerBackward::network_backward(const FeedForward& network, MatrixView<const float> dy,
                                     MatrixView<float> dx, GradientTap& tap) const {
  const Activation activation = desc_.mlp.activation;
  tap.linear(id(network.down_role, network.expert), network.middle.view(), dy);
  Matrix<float> d_up(network.up.rows(), network.up.cols());  // first of what down reads
  linear_backward(network.weights->down, dy, d_up.view());
  if (network.down_role == Role::kDown) online_backward(weights_.online.ffn, d_up.view());
  Matrix<float> d_gate(network.gate.rows(), network.gate.cols());
  for_rows(d_up.view(), [&](int64_t i) {
    float* up = d_up.row(i);
    if (!desc_.mlp.gated) {
      for (int64_t j = 0; j < d_up.cols(); ++j) {
        up[j] *= activation_slope(activation, network.up(i, j));
      }
      return;
    }
    for (int64_t j = 0; j < d_up.cols(); ++j) {
      d_gate(i, j) = up[j] * network.up(i, j) * activation_slope(activation, network.gate(i, j));
    }
    std::vector<float> gate(network.gate.row(i), network.gate.row(i) + d_up.cols());
    kernels().activate(activation, d_up.cols(), gate.data());
    kernels().multiply(up, gate.data(), d_up.cols(), up);
  });
  tap.linear(id(network.up_role, network.expert), network.x.view(), d_up.view());
  linear_backward(network.weights->up, d_up.view(), dx);
  if (!desc_.mlp.gated) return;
  tap.linear(id(network.gate_role, network.expert), network.x.view(), d_gate.view());
  linear_backward(network.weights->gate, d_gate.view(), dx);
}

void LayerBackward::shared_backward(MatrixView<const float> dy, MatrixView<float> dx,
                                    GradientTap& tap) const {
  Matrix<float> d_out = copy_of(dy), d_open(dy.rows, 1);  // of the sigmoid's argument
  for (int64_t i = 0; i < dy.rows; ++i) {
    const float share = shared_share_(i, 0);
    d_open(i, 0) = share * (1 - share) * kernels().dot(dy.row(i), shared_.out.row(i), dy.cols);
    kernels().scale(share, dy.cols, d_out.row(i));
  }
  network_backward(shared_, d_out.view(), dx, tap);
  if (!desc_.mlp.shared_router) return;
  tap.linear(id(Role::kSharedRouter), mlp_in_.view(), d_open.view());
  linear_backward(weights_.shared_router, d_open.view(), dx);
}

void LayerBackward::mixture_backward(MatrixView<const float> dy, MatrixView<float> dx,
                                     GradientTap& tap) const {
  const MlpDesc& m = desc_.mlp;
  Matrix<float> d_share(dy.rows, m.n_experts);  // 0 of experts that were not chosen
  for (const FeedForward& network : networks_) {
    Matrix<float> d_out = gather(dy, network.tokens), d_in(d_out.rows(), dx.cols);
    for (int64_t r = 0; r < d_out.rows(); ++r) {
      const int64_t i = network.tokens[static_cast<size_t>(r)];
      d_share(i, network.expert) = kernels().dot(d_out.row(r), network.out.row(r), dy.cols);
      kernels().scale(share_(i, network.expert), dy.cols, d_out.row(r));
    }
    network_backward(network, d_out.view(), d_in.view(), tap);
    scatter_add(d_in, network.tokens, dx);
  }
  // Shares are a softmax over all experts, or, when they are renormalised, over the chosen ones.
  const Matrix<float>& p = m.renormalise ? share_ : probabilities_;
  for (int64_t i = 0; i < dy.rows; ++i) {
    const float mean = kernels().dot(p.row(i), d_share.row(i), m.n_experts);
    for (int64_t e = 0; e < m.n_experts; ++e) d_share(i, e) = p(i, e) * (d_share(i, e) - mean);
  }
  tap.linear(id(Role::kRouter), mlp_in_.view(), d_share.view());
  linear_backward(weights_.router, d_share.view(), dx);
}

void finish_backward(const ModelDesc& model, const EndWeights& ends, MatrixView<const float> h,
                     MatrixView<float> d) {
  Matrix<float> x = copy_of(h);
  apply_online(ends.residual, x.view(), nullptr, Online::kInverse);
  if (ends.is_turned) online_backward(ends.residual, d);
  norm_backward(model.final_norm, ends.final_norm, x.view(), d);
  apply_online(ends.residual, d);
}

void embed_backward(const ModelDesc& model, const EndWeights& ends, MatrixView<float> d) {
  if (!ends.is_turned) online_backward(ends.residual, d);
  for_rows(d, [&](int64_t i) {
    double mean = 0;
    for (int64_t j = 0; j < d.cols && ends.is_centred; ++j) {
      mean += d(i, j) / static_cast<double>(d.cols);
    }
    for (int64_t j = 0; j < d.cols; ++j) {
      d(i, j) = static_cast<float>(model.embed_scale * (d(i, j) - mean));
    }
  });
}

}  // namespace quern
