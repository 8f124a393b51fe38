// SPDX-License-Identifier: Apache-2.0
#include "model/forward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/attention.h"
#include "kernels/kernels.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// Rows per piece of an elementwise pass: about 8K values.
int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, cols)); }

template <class Body>
void for_rows(MatrixView<float> x, const Body& body) {
  parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

void apply_chain(const Chain& chain, MatrixView<float> x) {
  if (chain.empty()) return;
  for_rows(x, [&](int64_t i) { chain.apply(x.row(i), x.cols); });
}

void add_rows(MatrixView<const float> src, MatrixView<float> dst) {
  for_rows(dst, [&](int64_t i) { kernels().add(src.row(i), dst.cols, dst.row(i)); });
}

// cos and sin of every row's position: [n_rows, n_dims / 2] each.
struct RopeTable {
  Matrix<float> cosine, sine;
};

RopeTable make_rope(const RopeDesc& rope, std::span<const SequenceRows> sequences, int64_t n_rows) {
  const int64_t half = rope.n_dims / 2;
  RopeTable table{Matrix<float>(n_rows, half), Matrix<float>(n_rows, half)};
  int64_t row = 0;
  for (const SequenceRows& sequence : sequences) {
    const bool is_long = !rope.inv_freq_long.empty() && sequence.context > rope.original_context;
    const std::vector<double>& inv_freq = is_long ? rope.inv_freq_long : rope.inv_freq;
    for (int64_t i = 0; i < sequence.n_rows; ++i, ++row) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle =
            static_cast<double>(sequence.position + i) * inv_freq[static_cast<size_t>(j)];
        table.cosine(row, j) = static_cast<float>(rope.magnitude * std::cos(angle));
        table.sine(row, j) = static_cast<float>(rope.magnitude * std::sin(angle));
      }
    }
  }
  return table;
}

class LayerRun {
 public:
  LayerRun(const LayerContext& context, const LayerWeights& weights,
           std::span<const SequenceRows> sequences, LayerTap* tap)
      : basis_(*context.basis),
        desc_(context.model->layers[static_cast<size_t>(context.layer)]),
        weights_(weights),
        sequences_(sequences),
        tap_(tap) {}

  bool run(MatrixView<float> h) {
    ScratchMatrix x(h.rows, h.cols), out(h.rows, h.cols);
    apply_norm(desc_.attn_norm, weights_.attn_norm, h, x.view());
    if (!attention(x.view(), out.view())) return false;
    if (desc_.parallel) {
      apply_norm(desc_.mlp_norm, weights_.mlp_norm, h, x.view());
      add_rows(out.view(), h);
    } else {
      apply_norm(desc_.attn_post_norm, weights_.attn_post_norm, out.view(), out.view());
      add_rows(out.view(), h);
      apply_norm(desc_.mlp_norm, weights_.mlp_norm, h, x.view());
    }
    if (!mlp(x.view(), out.view())) return false;
    apply_norm(desc_.mlp_post_norm, weights_.mlp_post_norm, out.view(), out.view());
    add_rows(out.view(), h);
    return true;
  }

 private:
  bool show(Role role, int expert, MatrixView<const float> x) {
    return tap_ == nullptr || tap_->input(role, expert, x);
  }

  bool attention(MatrixView<const float> x, MatrixView<float> out) {
    const AttentionDesc& a = desc_.attention;
    if (!show(Role::kQ, -1, x)) return false;
    ScratchMatrix q(x.rows, a.n_heads * a.d_head), k(x.rows, a.n_kv_heads * a.d_head),
        v(x.rows, a.n_kv_heads * a.d_head), z(x.rows, a.n_heads * a.d_head);
    linear(weights_.q, x, q.view());
    linear(weights_.k, x, k.view());
    linear(weights_.v, x, v.view());
    place_heads(q.view(), k.view(), v.view());
    attend_all(q.view(), z.view());
    apply_chain(basis_.at(Site::kHeads), z.view());
    if (!show(Role::kO, -1, z.view())) return false;
    linear(weights_.o, z.view(), out);
    return true;
  }

  // Norms, turns and rotates the heads of q and k; stores k and v.
  void place_heads(MatrixView<float> q, MatrixView<float> k, MatrixView<const float> v) {
    const AttentionDesc& a = desc_.attention;
    RopeTable rope;
    if (a.rope.n_dims > 0) rope = make_rope(a.rope, sequences_, q.rows);
    const auto prepare = [&](MatrixView<float> x, int64_t i, const NormWeight& norm) {
      for (int64_t h = 0; h < x.cols / a.d_head; ++h) {
        float* head = x.row(i) + h * a.d_head;
        const MatrixView<float> one(head, 1, a.d_head);
        apply_norm(a.qk_norm, norm, one, one);
        if (a.rope.n_dims > 0) {
          kernels().rope(rope.cosine.row(i), rope.sine.row(i), a.rope.n_dims, head);
        }
        basis_.at(Site::kQk).apply(head, a.d_head);
      }
    };
    for_rows(q, [&](int64_t i) {
      prepare(q, i, weights_.q_norm);
      prepare(k, i, weights_.k_norm);
    });
    int64_t row = 0;
    for (const SequenceRows& sequence : sequences_) {
      sequence.kv->put(sequence.position, k.row_range(row, sequence.n_rows),
                       v.row_range(row, sequence.n_rows));
      row += sequence.n_rows;
    }
  }

  // A piece of work is a tile of queries of one sequence for the heads that share a KV head, or for
  // some of them where there would be too few pieces.
  void attend_all(MatrixView<const float> q, MatrixView<float> z) {
    const AttentionDesc& a = desc_.attention;
    constexpr int64_t kRows = 64;  // queries times heads that share a pass over keys and values
    constexpr int64_t kMinPieces = 4, kMinHeads = 4;
    const int64_t per_kv = a.n_heads / a.n_kv_heads;
    const int64_t most_parts = ceil_div(kMinPieces, a.n_kv_heads * q.rows);
    const int64_t n_heads = std::max(std::min(kMinHeads, per_kv), ceil_div(per_kv, most_parts));
    const int64_t parts = ceil_div(per_kv, n_heads);
    const int64_t n_queries = std::min(kMaxQueries, std::max<int64_t>(1, kRows / n_heads));
    const int64_t across = a.n_kv_heads * parts;
    std::vector<Piece> pieces;
    int64_t first_row = 0;
    for (const SequenceRows& sequence : sequences_) {
      for (int64_t i = 0; i < sequence.n_rows; i += n_queries) {
        pieces.push_back({&sequence, first_row, i, std::min(n_queries, sequence.n_rows - i)});
      }
      first_row += sequence.n_rows;
    }
    parallel_for(static_cast<int64_t>(pieces.size()) * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t kv_head = i % across / parts, first = i % across % parts * n_heads;
        attend_piece(pieces[static_cast<size_t>(i / across)], kv_head, kv_head * per_kv + first,
                     std::min(n_heads, per_kv - first), q, z);
      }
    });
  }

  static constexpr int64_t kMaxQueries = 64;
  struct Piece {
    const SequenceRows* sequence;
    int64_t first_row;           // of the sequence in the batch
    int64_t first_query, count;  // in the sequence
  };

  void attend_piece(const Piece& piece, int64_t kv_head, int64_t head, int64_t n_heads,
                    MatrixView<const float> q, MatrixView<float> z) const {
    const AttentionDesc& a = desc_.attention;
    const SequenceRows& sequence = *piece.sequence;
    std::array<int64_t, kMaxQueries> first{}, last{};
    for (int64_t i = 0; i < piece.count; ++i) {
      const int64_t end = sequence.position + piece.first_query + i + 1;
      last[static_cast<size_t>(i)] = end;
      first[static_cast<size_t>(i)] = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    }
    const int64_t row = piece.first_row + piece.first_query;
    AttendArgs args;
    args.q = q.row(row) + head * a.d_head;
    args.ld_q = q.stride;
    args.n_q = piece.count;
    args.n_heads = n_heads;
    args.d_head = a.d_head;
    args.k = sequence.kv->keys(kv_head);
    args.v = sequence.kv->values(kv_head);
    args.dtype = sequence.kv->dtype();
    args.n_ctx = sequence.position + piece.first_query + piece.count;
    args.first = first.data();
    args.last = last.data();
    args.scale = static_cast<float>(a.scale);
    args.soft_cap = static_cast<float>(a.soft_cap);
    args.out = z.row(row) + head * a.d_head;
    args.ld_out = z.stride;
    attend(args);
  }

  bool mlp(MatrixView<const float> x, MatrixView<float> out) {
    if (desc_.mlp.n_experts == 0) return expert(weights_.experts[0], -1, Role::kGate, x, out);
    return mixture(x, out);
  }

  // out <- down( act(gate x) * (up x) )
  bool expert(const ExpertWeights& weights, int index, Role gate_role, MatrixView<const float> x,
              MatrixView<float> out) {
    const bool is_shared = gate_role == Role::kSharedGate;
    if (!show(gate_role, index, x)) return false;
    ScratchMatrix up(x.rows, weights.up.n_out);
    ScratchMatrix gate(desc_.mlp.gated ? x.rows : 0, weights.up.n_out);
    const MatrixView<float> u = desc_.mlp.gated ? gate.view() : up.view();
    linear(weights.up, x, up.view());
    if (desc_.mlp.gated) linear(weights.gate, x, u);
    for_rows(u, [&](int64_t i) {
      if (desc_.mlp.gated) {
        kernels().activate_gated(desc_.mlp.activation, up.row(i), u.cols, u.row(i));
      } else {
        kernels().activate(desc_.mlp.activation, u.cols, u.row(i));
      }
    });
    if (!is_shared) apply_chain(basis_.at(Site::kFfn), u);
    if (!show(is_shared ? Role::kSharedDown : Role::kDown, index, u)) return false;
    linear(weights.down, u, out);
    return true;
  }

  // The experts of a token are summed in the order of their indices, whatever the batch.
  bool mixture(MatrixView<const float> x, MatrixView<float> out) {
    const MlpDesc& m = desc_.mlp;
    ScratchMatrix share(x.rows, m.n_experts);  // 0 where an expert is not chosen
    linear(weights_.router, x, share.view());
    for_rows(share.view(), [&](int64_t i) { choose_experts(share.row(i)); });
    for (int64_t i = 0; i < out.rows; ++i) std::fill_n(out.row(i), out.cols, 0.0f);
    for (int64_t e = 0; e < m.n_experts; ++e) {
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < x.rows; ++i) {
        if (share.row(i)[e] != 0) rows.push_back(i);
      }
      if (rows.empty()) continue;
      ScratchMatrix part(static_cast<int64_t>(rows.size()), x.cols), result(part.rows(), out.cols);
      for (int64_t r = 0; r < part.rows(); ++r) {
        std::copy_n(x.row(rows[static_cast<size_t>(r)]), x.cols, part.row(r));
      }
      if (!expert(weights_.experts[static_cast<size_t>(e)], static_cast<int>(e), Role::kGate,
                  part.view(), result.view())) {
        return false;
      }
      for (int64_t r = 0; r < part.rows(); ++r) {
        const int64_t i = rows[static_cast<size_t>(r)];
        kernels().axpy(share.row(i)[e], result.row(r), out.cols, out.row(i));
      }
    }
    return m.d_ffn_shared == 0 || shared_expert(x, out);
  }

  bool shared_expert(MatrixView<const float> x, MatrixView<float> out) {
    ScratchMatrix result(x.rows, out.cols), gate(x.rows, 1);
    if (!expert(weights_.shared, -1, Role::kSharedGate, x, result.view())) return false;
    if (desc_.mlp.shared_router) linear(weights_.shared_router, x, gate.view());
    for (int64_t i = 0; i < x.rows; ++i) {
      const float share =
          desc_.mlp.shared_router ? 1.0f / (1.0f + std::exp(-gate.row(i)[0])) : 1.0f;
      kernels().axpy(share, result.row(i), out.cols, out.row(i));
    }
    return true;
  }

  // Router logits -> shares of the top_k experts (ties to the lower index), zero elsewhere.
  void choose_experts(float* logits) const {
    const MlpDesc& m = desc_.mlp;
    kernels().softmax(1, m.n_experts, logits, nullptr);
    std::vector<int64_t> order(static_cast<size_t>(m.n_experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
    float total = 0;
    for (int64_t i = 0; i < m.top_k; ++i) total += logits[order[static_cast<size_t>(i)]];
    for (int64_t i = 0; i < m.n_experts; ++i) {
      float& share = logits[order[static_cast<size_t>(i)]];
      if (i >= m.top_k) share = 0;
      if (m.renormalise && total > 0) share /= total;
    }
  }

  const BasisChange& basis_;
  const LayerDesc& desc_;
  const LayerWeights& weights_;
  std::span<const SequenceRows> sequences_;
  LayerTap* tap_;
};

}  // namespace

LinearWeight& LayerWeights::at(Role role, int expert) {
  ExpertWeights& one = experts[static_cast<size_t>(std::max(expert, 0))];
  switch (role) {
    case Role::kQ:
      return q;
    case Role::kK:
      return k;
    case Role::kV:
      return v;
    case Role::kO:
      return o;
    case Role::kGate:
      return one.gate;
    case Role::kUp:
      return one.up;
    case Role::kDown:
      return one.down;
    case Role::kRouter:
      return router;
    case Role::kSharedRouter:
      return shared_router;
    case Role::kSharedGate:
      return shared.gate;
    case Role::kSharedUp:
      return shared.up;
    case Role::kSharedDown:
      return shared.down;
    default:
      QUERN_CHECK(!"not a linear role of a layer");
      return q;
  }
}

void apply_norm(const NormDesc& norm, const NormWeight& weight, MatrixView<const float> src,
                MatrixView<float> dst) {
  const float* gain = weight.gain.empty() ? nullptr : weight.gain.data();
  const float* bias = weight.bias.empty() ? nullptr : weight.bias.data();
  const auto eps = static_cast<float>(norm.eps);
  if (norm.kind == NormKind::kNone && src.data == dst.data) return;
  for_rows(dst, [&](int64_t i) {
    if (norm.kind == NormKind::kRms) {
      kernels().rms_norm(src.row(i), gain, eps, src.cols, dst.row(i));
    } else if (norm.kind == NormKind::kLayer) {
      kernels().layer_norm(src.row(i), gain, bias, eps, src.cols, dst.row(i));
    } else {
      std::copy_n(src.row(i), src.cols, dst.row(i));
    }
  });
}

bool forward_layer(const LayerContext& context, const LayerWeights& weights,
                   std::span<const SequenceRows> sequences, MatrixView<float> h, LayerTap* tap) {
  return LayerRun(context, weights, sequences, tap).run(h);
}

}  // namespace quern
