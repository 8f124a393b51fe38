// SPDX-License-Identifier: Apache-2.0
#include "model/forward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/checked.h"
#include "kernels/attention.h"
#include "kernels/kernels.h"
#include "model/adaptation.h"
#include "model/eviction.h"
#include "model/merging.h"
#include "model/norms.h"
#include "model/rope.h"
#include "model/row_passes.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

class LayerRun {
 public:
  LayerRun(const LayerContext& context, const LayerWeights& weights,
           std::span<const SequenceRows> sequences, LayerTap* tap)
      : desc_(context.model->layers[static_cast<size_t>(context.layer)]),
        weights_(weights),
        layer_(context.layer),
        sequences_(sequences),
        rope_(*context.rope),
        online_time_(context.online_time),
        attention_time_(context.attention_time),
        tap_(tap) {}

  bool run(MatrixView<float> h) {
    if (weights_.mlp_skip.exists()) return run_sliced(h);
    ScratchMatrix x(h.rows, h.cols), out(h.rows, h.cols);
    apply_norm(desc_.attn_norm, weights_.attn_norm, h, x.view());
    if (!attention(x.view(), out.view())) return false;
    // A sum and the norms around it pass over a row together.
    for_rows(h, [&](int64_t i) {
      if (desc_.parallel) {
        norm_row(desc_.mlp_norm, weights_.mlp_norm, h.row(i), h.cols, x.row(i));
        kernels().add(out.row(i), h.cols, h.row(i));
      } else {
        add_normed(desc_.attn_post_norm, weights_.attn_post_norm, out.row(i), h.cols, h.row(i));
        norm_row(desc_.mlp_norm, weights_.mlp_norm, h.row(i), h.cols, x.row(i));
      }
    });
    if (!mlp(x.view(), out.view())) return false;
    for_rows(h, [&](int64_t i) {
      add_normed(desc_.mlp_post_norm, weights_.mlp_post_norm, out.row(i), h.cols, h.row(i));
    });
    return true;
  }

  // The same where the stream changes its basis or width on its way.
  bool run_sliced(MatrixView<float> full) {
    const int64_t d_in = weights_.q.n_in, d_mid = weights_.experts[0].up.n_in,
                  d_out = weights_.experts[0].down.n_out;
    const MatrixView<float> h{full.data, full.rows, d_in, full.stride};
    ScratchMatrix x(h.rows, d_in), z(h.rows, d_mid), past(h.rows, weights_.o.n_out),
        out(h.rows, d_out), skipped(h.rows, d_out);
    for_rows(x.view(), [&](int64_t i) {
      norm_row(desc_.attn_norm, weights_.attn_norm, h.row(i), d_in, x.row(i), full.cols);
    });
    if (!attention(x.view(), past.view())) return false;
    copy_rows(h, x.view());
    ScratchMatrix middle(desc_.parallel ? 0 : h.rows, d_mid);
    const MatrixView<float> mid = desc_.parallel ? x.view() : middle.view();  // [n, d_mid]
    if (!desc_.parallel) {
      linear(weights_.attn_skip, x.view(), mid);
      for_rows(mid, [&](int64_t i) { kernels().add(past.row(i), d_mid, mid.row(i)); });
      if (tap_ != nullptr && !tap_->middle(mid)) return false;
    }
    for_rows(mid, [&](int64_t i) {
      norm_row(desc_.mlp_norm, weights_.mlp_norm, mid.row(i), d_mid, z.row(i), full.cols);
    });
    if (!mlp(z.view(), out.view())) return false;
    linear(weights_.mlp_skip, mid, skipped.view());
    for_rows(out.view(), [&](int64_t i) {
      if (desc_.parallel) kernels().add(past.row(i), d_out, skipped.row(i));
      kernels().add(out.row(i), d_out, skipped.row(i));
      std::copy_n(skipped.row(i), d_out, full.row(i));
      std::fill(full.row(i) + d_out, full.row(i) + full.cols, 0.0f);
    });
    return true;
  }

 private:
  static constexpr int64_t kMostQueries = 64;

  static void copy_rows(MatrixView<const float> from, MatrixView<float> to) {
    for (int64_t i = 0; i < to.rows; ++i) std::copy_n(from.row(i), to.cols, to.row(i));
  }

  bool show(Role role, int expert, MatrixView<const float> x) {
    return tap_ == nullptr || tap_->input(role, expert, x);
  }

  // Heads of queries or keys; `to` may be `from`.
  void norm_heads(MatrixView<const float> from, const NormWeight& weight,
                  MatrixView<float> to) const {
    const AttentionDesc& a = desc_.attention;
    if (a.qk_norm.kind == NormKind::kNone && from.data == to.data) return;
    for_rows(to, [&](int64_t i) {
      for (int64_t c = 0; c < to.cols; c += a.d_head) {
        norm_row(a.qk_norm, weight, from.row(i) + c, a.d_head, to.row(i) + c);
      }
    });
  }

  bool show_heads(MatrixView<const float> q, MatrixView<const float> k, MatrixView<const float> v) {
    if (desc_.attention.qk_norm.kind == NormKind::kNone) return tap_->heads(q, k, v);
    ScratchMatrix normed_q(q.rows, q.cols), normed_k(k.rows, k.cols);
    norm_heads(q, weights_.q_norm, normed_q.view());
    norm_heads(k, weights_.k_norm, normed_k.view());
    return tap_->heads(normed_q.view(), normed_k.view(), v);
  }

  // Operators between rows and the products that read them: left to these, but where a tap looks.
  OnlineChain before_products(const Chain& chain, MatrixView<float> x) {
    if (tap_ == nullptr) return {&chain, online_time_};
    apply_online(chain, x, online_time_);
    return {};
  }

  bool attention(MatrixView<float> x, MatrixView<float> out) {
    const AttentionDesc& a = desc_.attention;
    const OnlineChain to_read = before_products(weights_.online.attn_in, x);
    if (!show(Role::kQ, -1, x)) return false;
    ScratchMatrix q(x.rows, a.n_heads * a.d_head), k(x.rows, a.n_kv_heads * a.d_head),
        v(x.rows, a.n_kv_heads * a.d_head), z(x.rows, a.n_heads * a.d_head);
    const Product products[] = {
        {&weights_.q, q.view()}, {&weights_.k, k.view()}, {&weights_.v, v.view()}};
    linear(products, x, to_read);
    if (tap_ != nullptr && !show_heads(q.view(), k.view(), v.view())) return false;
    place_heads(q.view(), k.view(), v.view());
    spend(attention_time_, [&] {
      attend_all(q.view(), z.view());
      attend_as_it_goes(q.view(), k.view(), v.view(), z.view());
    });
    for_rotated([&](const HadamardPlan& rotation, int64_t row, int64_t n) {
      rotation.apply_rows_transposed(heads_of(z.view(), row, n));
    });
    const OnlineChain online = before_products(weights_.online.heads, z.view());
    if (!show(Role::kO, -1, z.view())) return false;
    linear(weights_.o, z.view(), out, online);
    return true;
  }

  // Heads of n rows, one after the other.
  MatrixView<float> heads_of(MatrixView<float> x, int64_t row, int64_t n) const {
    const int64_t d_head = desc_.attention.d_head;
    return {x.row(row), n * (x.cols / d_head), d_head};
  }

  // The rows of sequences whose caches keep heads in another basis.
  template <class Body>
  void for_rotated(const Body& body) const {
    for_sequences([&](const SequenceRows& sequence, int64_t row) {
      const HadamardPlan* rotation = sequence.kv->rotation();
      if (rotation != nullptr) body(*rotation, row, sequence.n_rows);
    });
  }

  // Norms, turns and rotates the heads of q and k; stores k and v.
  void place_heads(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v) {
    const AttentionDesc& a = desc_.attention;
    const RopeTable* rope = a.rope.n_dims > 0 ? &rope_.at(a.rope, sequences_) : nullptr;
    keep_moving(k);
    const bool is_normed = pool_all(q, k, v);
    const auto prepare = [&](MatrixView<float> x, int64_t i, const NormWeight& norm) {
      for (int64_t h = 0; h < x.cols / a.d_head; ++h) {
        float* head = x.row(i) + h * a.d_head;
        if (!is_normed) norm_row(a.qk_norm, norm, head, a.d_head, head);
        if (rope != nullptr) {
          kernels().rope(rope->cosine.row(i), rope->sine.row(i), a.rope.n_dims, head);
        }
      }
    };
    for_rows(q, [&](int64_t i) {
      prepare(q, i, weights_.q_norm);
      prepare(k, i, weights_.k_norm);
    });
    apply_online(weights_.online.qk, q, online_time_);
    apply_online(weights_.online.qk, k, online_time_,
                 Online::kInverseTranspose);  // so that scores stay
    for_rotated([&](const HadamardPlan& rotation, int64_t row, int64_t n) {
      for (const MatrixView<float>& x : {q, k, v}) rotation.apply_rows(heads_of(x, row, n));
    });
    for_sequences([&](const SequenceRows& sequence, int64_t row) {
      if (stores_as_it_goes(*sequence.kv)) return;
      sequence.kv->put(sequence.position, k.row_range(row, sequence.n_rows),
                       v.row_range(row, sequence.n_rows));
    });
  }

  template <class Body>
  void for_sequences(const Body& body) const {
    int64_t row = 0;
    for (const SequenceRows& sequence : sequences_) {
      body(sequence, row);
      row += sequence.n_rows;
    }
  }

  static bool stores_as_it_goes(const LayerKv& kv) {
    return kv.policy() != nullptr || kv.merge() != nullptr || kv.adapts();
  }

  MergingRows merging_rows(const SequenceRows& s, int64_t row, MatrixView<float> q,
                           MatrixView<float> k, MatrixView<float> v) {
    const int64_t heads = desc_.attention.n_kv_heads, n = s.n_rows;
    joins_.resize(static_cast<size_t>(q.rows * heads));
    return {&desc_.attention,
            s.kv,
            s.position,
            q.row_range(row, n),
            k.row_range(row, n),
            v.row_range(row, n),
            joins_.data() + row * heads};
  }

  // Keys and values of caches that merge become means. True if there are any: heads are normed.
  bool pool_all(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v) {
    const auto merges = [](const SequenceRows& s) { return s.kv->merge() != nullptr; };
    if (std::none_of(sequences_.begin(), sequences_.end(), merges)) return false;
    norm_heads(q, weights_.q_norm, q);
    norm_heads(k, weights_.k_norm, k);
    for_sequences([&](const SequenceRows& s, int64_t row) {
      if (s.kv->merge() != nullptr) pool_rows(merging_rows(s, row, q, k, v));
    });
    return true;
  }

  // Keys before RoPE of first positions that may have to be turned again.
  void keep_moving(MatrixView<const float> k) {
    for_sequences([&](const SequenceRows& sequence, int64_t row) {
      const KvPolicy* policy = sequence.kv->policy();
      const int64_t n = policy == nullptr ? 0 : policy->n_moving() - sequence.position;
      if (n <= 0) return;
      ScratchMatrix kept(std::min(n, sequence.n_rows), k.cols);
      norm_heads(k.row_range(row, kept.rows()), weights_.k_norm, kept.view());
      sequence.kv->slots().keep_moving(kept.view());
    });
  }

  // Sequences whose caches evict, merge or adapt, one after the other.
  void attend_as_it_goes(MatrixView<float> q, MatrixView<float> k, MatrixView<float> v,
                         MatrixView<float> z) {
    for_sequences([&](const SequenceRows& s, int64_t row) {
      if (s.kv->adapts()) {
        attend_adapting({&desc_.attention, s.kv, s.position, q.row_range(row, s.n_rows),
                         k.row_range(row, s.n_rows), v.row_range(row, s.n_rows),
                         z.row_range(row, s.n_rows)});
      }
      if (s.kv->merge() != nullptr) {
        attend_merging(merging_rows(s, row, q, k, v), z.row_range(row, s.n_rows));
      }
      if (s.kv->policy() == nullptr) return;
      const auto place = [&](MatrixView<float> keys, int64_t position) {
        place_keys(s, position, keys);
      };
      attend_evicting({&desc_.attention, layer_, s.kv, s.position, q.row_range(row, s.n_rows),
                       k.row_range(row, s.n_rows), v.row_range(row, s.n_rows),
                       z.row_range(row, s.n_rows), place});
    });
  }

  // Normed keys as they are stored of positions from `position` on.
  void place_keys(const SequenceRows& sequence, int64_t position, MatrixView<float> k) {
    const AttentionDesc& a = desc_.attention;
    const SequenceRows rows{sequence.kv, position, k.rows, sequence.context};
    RopeTables tables;
    if (a.rope.n_dims > 0) {
      const RopeTable& rope = tables.at(a.rope, {&rows, 1});
      for (int64_t i = 0; i < k.rows * a.n_kv_heads; ++i) {
        const int64_t row = i / a.n_kv_heads;
        kernels().rope(rope.cosine.row(row), rope.sine.row(row), a.rope.n_dims,
                       k.row(row) + i % a.n_kv_heads * a.d_head);
      }
    }
    apply_online(weights_.online.qk, k, online_time_, Online::kInverseTranspose);
  }

  // Some queries of one sequence, and what they see.
  struct Queries {
    const SequenceRows* sequence;
    int64_t row, first, count;  // the first of them: in the batch, in the sequence
    std::array<int64_t, kMostQueries> begin{}, coded{}, end{};  // of all that is seen; of codes
  };
  // One KV head of them.
  struct Head {
    LayerKv::Codes codes;
    LayerKv::Exact exact;
    std::array<KvSegment, 2> segments{};
  };

  // A job is a tile of queries of one sequence for the heads that share a KV head.
  void attend_all(MatrixView<const float> q, MatrixView<float> z) {
    const AttentionDesc& a = desc_.attention;
    constexpr int64_t kRows = 64;  // queries times heads that share a pass over keys and values
    const int64_t n_queries =
        std::clamp<int64_t>(kRows / (a.n_heads / a.n_kv_heads), 1, kMostQueries);
    std::vector<Queries> queries;
    for_sequences([&](const SequenceRows& sequence, int64_t row) {
      if (stores_as_it_goes(*sequence.kv)) return;
      for (int64_t i = 0; i < sequence.n_rows; i += n_queries) {
        const int64_t count = std::min(n_queries, sequence.n_rows - i);
        queries.push_back(look(sequence, row + i, i, count));
      }
    });
    std::vector<Head> heads;
    std::vector<AttendArgs> jobs;
    heads.reserve(queries.size() * static_cast<size_t>(a.n_kv_heads));  // jobs point into it
    for (const Queries& part : queries) {
      for (int64_t kv_head = 0; kv_head < a.n_kv_heads; ++kv_head) {
        const LayerKv& kv = *part.sequence->kv;
        Head& head = heads.emplace_back(Head{LayerKv::Codes(kv, kv_head), {kv, kv_head}});
        head.segments = {{{&head.codes, part.begin.data(), part.coded.data()},
                          {&head.exact, part.coded.data(), part.end.data()}}};
        const auto segments = std::span(head.segments).subspan(kv.recipe().is_coded() ? 0 : 1);
        jobs.push_back(job(part, kv_head, segments, q, z));
      }
    }
    attend(jobs);
  }

  Queries look(const SequenceRows& sequence, int64_t row, int64_t first, int64_t count) const {
    const int64_t window = desc_.attention.window;
    Queries queries{&sequence, row, first, count};
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t position = sequence.position + first + i;
      queries.end[at] = position + 1;
      queries.begin[at] = window > 0 ? std::max<int64_t>(0, position + 1 - window) : 0;
      queries.coded[at] = std::max(queries.begin[at], sequence.kv->coded_before(position));
    }
    return queries;
  }

  AttendArgs job(const Queries& queries, int64_t kv_head, std::span<const KvSegment> segments,
                 MatrixView<const float> q, MatrixView<float> z) const {
    const AttentionDesc& a = desc_.attention;
    const int64_t n_heads = a.n_heads / a.n_kv_heads, at = kv_head * n_heads * a.d_head;
    AttendArgs args;
    args.q = q.row(queries.row) + at;
    args.ld_q = q.stride;
    args.n_q = queries.count;
    args.n_heads = n_heads;
    args.d_head = a.d_head;
    args.segments = segments;
    args.n_ctx = queries.sequence->position + queries.first + queries.count;
    args.scale = static_cast<float>(a.scale);
    args.soft_cap = static_cast<float>(a.soft_cap);
    args.out = z.row(queries.row) + at;
    args.ld_out = z.stride;
    return args;
  }

  bool mlp(MatrixView<float> x, MatrixView<float> out) {
    if (desc_.mlp.n_experts == 0) {
      const OnlineChain to_read = before_products(weights_.online.mlp_in, x);
      return expert(weights_.experts[0], -1, Role::kGate, x, to_read, out);
    }
    apply_online(weights_.online.mlp_in, x, online_time_);  // routers and experts read it
    return mixture(x, out);
  }

  // out <- down( act(gate x) * (up x) ), x behind `to_read`
  bool expert(const ExpertWeights& weights, int index, Role gate_role, MatrixView<const float> x,
              const OnlineChain& to_read, MatrixView<float> out) {
    const bool is_shared = gate_role == Role::kSharedGate;
    if (!show(gate_role, index, x)) return false;
    const bool has_online = !is_shared && !weights_.online.ffn.empty();
    if (desc_.mlp.gated && tap_ == nullptr && !has_online) {
      linear_mlp(weights.gate, weights.up, weights.down, desc_.mlp.activation, x, out, to_read);
      return true;
    }
    ScratchMatrix middle(x.rows, weights.up.n_out);
    const MatrixView<float> u = middle.view();
    if (desc_.mlp.gated) {
      linear_gated(weights.gate, weights.up, desc_.mlp.activation, x, u, to_read);
    } else {
      linear(weights.up, x, u, to_read);
      for_rows(u, [&](int64_t i) { kernels().activate(desc_.mlp.activation, u.cols, u.row(i)); });
    }
    const OnlineChain online = is_shared ? OnlineChain() : before_products(weights_.online.ffn, u);
    if (!show(is_shared ? Role::kSharedDown : Role::kDown, index, u)) return false;
    linear(weights.down, u, out, online);
    return true;
  }

  // The experts of a token are summed in the order of their indices, whatever the batch.
  bool mixture(MatrixView<const float> x, MatrixView<float> out) {
    const MlpDesc& m = desc_.mlp;
    ScratchMatrix share(x.rows, m.n_experts);  // 0 where an expert is not chosen
    linear(weights_.router, x, share.view());
    for_rows(share.view(), [&](int64_t i) { choose_experts(m, share.row(i)); });
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
                  part.view(), {}, result.view())) {
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
    if (!expert(weights_.shared, -1, Role::kSharedGate, x, {}, result.view())) return false;
    if (desc_.mlp.shared_router) linear(weights_.shared_router, x, gate.view());
    for (int64_t i = 0; i < x.rows; ++i) {
      const float share =
          desc_.mlp.shared_router ? 1.0f / (1.0f + std::exp(-gate.row(i)[0])) : 1.0f;
      kernels().axpy(share, result.row(i), out.cols, out.row(i));
    }
    return true;
  }

  const LayerDesc& desc_;
  const LayerWeights& weights_;
  int layer_;
  std::span<const SequenceRows> sequences_;
  RopeTables& rope_;
  SpentTime *online_time_, *attention_time_;
  LayerTap* tap_;
  std::vector<uint8_t> joins_;  // [rows, n_kv_heads], of caches that merge
};

}  // namespace

void choose_experts(const MlpDesc& m, float* logits) {
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

bool forward_layer(const LayerContext& context, const LayerWeights& weights,
                   std::span<const SequenceRows> sequences, MatrixView<float> h, LayerTap* tap) {
  return LayerRun(context, weights, sequences, tap).run(h);
}

}  // namespace quern
