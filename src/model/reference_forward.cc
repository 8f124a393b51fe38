// SPDX-License-Identifier: Apache-2.0
#include "model/reference_forward.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "model/reference_ops.h"

namespace quern {
namespace {

template <class T>
class Forward {
 public:
  Forward(const ModelDesc& model, const DenseWeights<T>& weights, const ReferenceHooks<T>& hooks)
      : model_(model), weights_(weights), hooks_(hooks) {}

  Matrix<T> run(std::span<const int32_t> ids) {
    Matrix<T> h = embed(ids);
    call(hooks_.after_embedding, h);
    for (layer_ = 0; layer_ < static_cast<int>(model_.layers.size()); ++layer_) {
      run_layer(model_.layers[static_cast<size_t>(layer_)], h);
      call(hooks_.layer_output, layer_, h);
    }
    layer_ = -1;
    call(hooks_.before_final_norm, h);
    norm(model_.final_norm, Role::kFinalNorm, h);
    call(hooks_.before_head, h);
    const WeightId head{model_.tied_head ? Role::kEmbed : Role::kLmHead};
    Matrix<T> logits =
        reference::linear(h, weights_.get(head), bias(model_.head_bias, {Role::kLmHead}));
    for (int64_t i = 0; i < logits.rows() * logits.cols(); ++i) {
      reference::soft_cap(model_.logit_soft_cap, logits.data()[i]);
    }
    return logits;
  }

 private:
  template <class Hook, class... Args>
  void call(const Hook& hook, Args&&... args) {
    if (hook) hook(args...);
  }

  const Matrix<T>* bias(bool has_bias, const WeightId& id) const {
    return has_bias ? &weights_.get(id, Part::kBias) : nullptr;
  }

  void norm(const NormDesc& norm, Role role, Matrix<T>& x) const {
    if (norm.kind == NormKind::kNone) return;
    const WeightId id{role, layer_};
    const bool is_of_stream = role == Role::kAttnNorm || role == Role::kMlpNorm;
    reference::normalise(norm, weights_.get(id), bias(norm.has_bias, id), x,
                         is_of_stream ? model_.d_model : 0);
  }

  Matrix<T> project(const Matrix<T>& x, bool has_bias, const WeightId& id) const {
    return reference::linear(x, weights_.get(id), bias(has_bias, id));
  }

  Matrix<T> embed(std::span<const int32_t> ids) const {
    const Matrix<T>& table = weights_.get({Role::kEmbed});
    const bool is_learned = model_.positions == PositionKind::kLearned;
    Matrix<T> h(static_cast<int64_t>(ids.size()), table.cols());
    for (int64_t i = 0; i < h.rows(); ++i) {
      const int64_t id = ids[static_cast<size_t>(i)];
      QUERN_CHECK(id >= 0 && id < table.rows());
      QUERN_CHECK(!is_learned || i + model_.pos_offset < model_.n_positions);
      for (int64_t j = 0; j < h.cols(); ++j) {
        h(i, j) = T(model_.embed_scale) * table(id, j);
        if (is_learned) h(i, j) += weights_.get({Role::kPosEmbed})(i + model_.pos_offset, j);
      }
    }
    return h;
  }

  void run_layer(const LayerDesc& layer, Matrix<T>& h) {
    Matrix<T> x = h;
    norm(layer.attn_norm, Role::kAttnNorm, x);
    Matrix<T> y = attention(layer.attention, x);
    norm(layer.attn_post_norm, Role::kAttnPostNorm, y);
    const Matrix<T> start = h;
    if (!layer.parallel) {
      h = skip(layer, Role::kAttnSkip, h);
      reference::add(y, h);
    }
    x = layer.parallel ? start : h;
    norm(layer.mlp_norm, Role::kMlpNorm, x);
    Matrix<T> z = mlp(layer.mlp, x);
    norm(layer.mlp_post_norm, Role::kMlpPostNorm, z);
    h = skip(layer, Role::kMlpSkip, h);
    if (layer.parallel) reference::add(y, h);
    reference::add(z, h);
  }

  // The stream past a part of a layer, in the basis that comes next.
  Matrix<T> skip(const LayerDesc& layer, Role role, const Matrix<T>& h) const {
    return layer.is_sliced() ? project(h, false, {role, layer_}) : h;
  }

  void rotate(const AttentionDesc& attention, Matrix<T>& x) const {
    const RopeDesc& rope = attention.rope;
    if (model_.positions != PositionKind::kRope || rope.n_dims == 0) return;
    const bool is_long = !rope.inv_freq_long.empty() && x.rows() > rope.original_context;
    const std::vector<double>& freq = is_long ? rope.inv_freq_long : rope.inv_freq;
    const int64_t half = rope.n_dims / 2;
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (T* v = x.row(i); v != x.row(i) + x.cols(); v += attention.d_head) {
        for (int64_t j = 0; j < half; ++j) {
          const double angle = static_cast<double>(i) * freq[static_cast<size_t>(j)];
          const T c = T(std::cos(angle) * rope.magnitude), s = T(std::sin(angle) * rope.magnitude);
          const T a = v[j], b = v[j + half];
          v[j] = a * c - b * s;
          v[j + half] = b * c + a * s;
        }
      }
    }
  }

  Matrix<T> attention(const AttentionDesc& attention, Matrix<T>& x) {
    call(hooks_.qkv_input, layer_, x);
    Matrix<T> q = project(x, attention.qkv_bias, {Role::kQ, layer_});
    Matrix<T> k = project(x, attention.qkv_bias, {Role::kK, layer_});
    Matrix<T> v = project(x, attention.qkv_bias, {Role::kV, layer_});
    norm(attention.qk_norm, Role::kQNorm, q);
    norm(attention.qk_norm, Role::kKNorm, k);
    call(hooks_.k_before_rope, layer_, k);
    rotate(attention, q);
    rotate(attention, k);
    call(hooks_.q, layer_, q);
    call(hooks_.k, layer_, k);
    call(hooks_.v, layer_, v);
    Matrix<T> mixed(x.rows(), q.cols());
    for (int64_t head = 0; head < attention.n_heads; ++head) mix(attention, head, q, k, v, mixed);
    call(hooks_.o_input, layer_, mixed);
    return project(mixed, attention.o_bias, {Role::kO, layer_});
  }

  // One query head over the key and value head that its group shares.
  static void mix(const AttentionDesc& attention, int64_t head, const Matrix<T>& q,
                  const Matrix<T>& k, const Matrix<T>& v, Matrix<T>& mixed) {
    const int64_t d = attention.d_head;
    const int64_t at_q = head * d;
    const int64_t at_kv = head / (attention.n_heads / attention.n_kv_heads) * d;
    std::vector<T> scores(static_cast<size_t>(q.rows()));
    for (int64_t i = 0; i < q.rows(); ++i) {
      const int64_t first =
          attention.window == 0 ? 0 : std::max<int64_t>(0, i + 1 - attention.window);
      for (int64_t j = first; j <= i; ++j) {
        const T* query = q.row(i) + at_q;
        T& score = scores[static_cast<size_t>(j)];
        score = T(attention.scale) * std::inner_product(query, query + d, k.row(j) + at_kv, T(0));
        reference::soft_cap(attention.soft_cap, score);
      }
      reference::softmax(scores.data() + first, i + 1 - first);
      for (int64_t j = first; j <= i; ++j) {
        const T weight = scores[static_cast<size_t>(j)];
        for (int64_t c = 0; c < d; ++c) mixed(i, at_q + c) += weight * v(j, at_kv + c);
      }
    }
  }

  // down( act(gate x) * (up x) ), or down( act(up x) )
  Matrix<T> feed_forward(const MlpDesc& mlp, const Matrix<T>& x, const WeightId& gate,
                         const WeightId& up, const WeightId& down) {
    const bool has_bias = mlp.bias;
    Matrix<T> middle = project(x, has_bias, up);
    Matrix<T> gated = mlp.gated ? project(x, has_bias, gate) : Matrix<T>();
    for (int64_t i = 0; i < middle.rows() * middle.cols(); ++i) {
      T& m = middle.data()[i];
      m = mlp.gated ? reference::activate(mlp.activation, gated.data()[i]) * m
                    : reference::activate(mlp.activation, m);
    }
    call(hooks_.down_input, down, middle);
    return project(middle, has_bias, down);
  }

  Matrix<T> mlp(const MlpDesc& mlp, Matrix<T>& x) {
    call(hooks_.mlp_input, layer_, x);
    if (mlp.n_experts == 0) {
      return feed_forward(mlp, x, {Role::kGate, layer_}, {Role::kUp, layer_},
                          {Role::kDown, layer_});
    }
    Matrix<T> y(x.rows(), model_.width_out(model_.layers[static_cast<size_t>(layer_)]));
    const Matrix<T> shares = route(mlp, x);
    for (int expert = 0; expert < mlp.n_experts; ++expert) {
      std::vector<int64_t> tokens;
      for (int64_t i = 0; i < x.rows(); ++i) {
        if (shares(i, expert) != 0) tokens.push_back(i);
      }
      Matrix<T> routed(static_cast<int64_t>(tokens.size()), x.cols());
      for (int64_t i = 0; i < routed.rows(); ++i) {
        const int64_t token = tokens[static_cast<size_t>(i)];
        std::copy_n(x.row(token), x.cols(), routed.row(i));
      }
      const Matrix<T> z = feed_forward(mlp, routed, {Role::kGate, layer_, expert},
                                       {Role::kUp, layer_, expert}, {Role::kDown, layer_, expert});
      for (int64_t i = 0; i < z.rows(); ++i) {
        const int64_t token = tokens[static_cast<size_t>(i)];
        for (int64_t j = 0; j < z.cols(); ++j) y(token, j) += shares(token, expert) * z(i, j);
      }
    }
    if (mlp.d_ffn_shared > 0) add_shared_expert(mlp, x, y);
    return y;
  }

  // The share of each expert in each token, 0 where it was not chosen: [n, n_experts]. Of equal
  // probabilities the lower expert goes first.
  Matrix<T> route(const MlpDesc& mlp, const Matrix<T>& x) const {
    Matrix<T> shares = project(x, false, {Role::kRouter, layer_});
    std::vector<int64_t> order(static_cast<size_t>(mlp.n_experts));
    for (int64_t i = 0; i < shares.rows(); ++i) {
      T* p = shares.row(i);
      reference::softmax(p, mlp.n_experts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [p](int64_t a, int64_t b) { return p[a] > p[b]; });
      for (size_t rank = static_cast<size_t>(mlp.top_k); rank < order.size(); ++rank) {
        p[order[rank]] = 0;
      }
      if (!mlp.renormalise) continue;
      const T sum = std::accumulate(p, p + mlp.n_experts, T(0));
      for (int64_t e = 0; e < mlp.n_experts; ++e) p[e] /= sum;
    }
    return shares;
  }

  void add_shared_expert(const MlpDesc& mlp, const Matrix<T>& x, Matrix<T>& y) {
    const Matrix<T> z = feed_forward(mlp, x, {Role::kSharedGate, layer_}, {Role::kSharedUp, layer_},
                                     {Role::kSharedDown, layer_});
    Matrix<T> open;
    if (mlp.shared_router) open = project(x, false, {Role::kSharedRouter, layer_});
    for (int64_t i = 0; i < y.rows(); ++i) {
      const T share = mlp.shared_router ? 1 / (1 + std::exp(-open(i, 0))) : T(1);
      for (int64_t j = 0; j < y.cols(); ++j) y(i, j) += share * z(i, j);
    }
  }

  const ModelDesc& model_;
  const DenseWeights<T>& weights_;
  const ReferenceHooks<T>& hooks_;
  int layer_ = -1;
};

}  // namespace

template <class T>
Matrix<T> reference_logits(const ModelDesc& model, const DenseWeights<T>& weights,
                           std::span<const int32_t> ids, const ReferenceHooks<T>& hooks) {
  return Forward<T>(model, weights, hooks).run(ids);
}

template Matrix<float> reference_logits(const ModelDesc&, const DenseWeights<float>&,
                                        std::span<const int32_t>, const ReferenceHooks<float>&);
template Matrix<double> reference_logits(const ModelDesc&, const DenseWeights<double>&,
                                         std::span<const int32_t>, const ReferenceHooks<double>&);

}  // namespace quern
