// SPDX-License-Identifier: Apache-2.0
#include "model/eviction.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/attention.h"

namespace quern {
namespace {

constexpr int64_t kRows = 64;              // queries times heads of a part, as elsewhere
constexpr int64_t kMostWeights = 4 << 20;  // floats of the weights of a part

// Consecutive queries, the first at `position`, over the slots there are.
class Part {
 public:
  Part(const AttentionDesc& a, int64_t layer, LayerKv& kv, int64_t position)
      : a_(a), layer_(layer), kv_(kv), position_(position), n_heads_(a.n_heads / a.n_kv_heads) {}

  void attend(MatrixView<const float> q, MatrixView<float> z, bool with_weights) {
    const int64_t n = q.rows;
    std::vector<Head> heads;
    std::vector<AttendArgs> jobs;
    heads.reserve(static_cast<size_t>(a_.n_kv_heads));  // jobs point into it
    const int64_t n_weights = n * n_heads_ * kv_.n_slots();
    if (with_weights) weights_.resize(static_cast<size_t>(a_.n_kv_heads * n_weights));
    const bool has_absorbed = kv_.maps() != nullptr && kv_.slots().n_dropped > 0;
    std::vector<float> lse(static_cast<size_t>(has_absorbed ? n * a_.n_heads : 0));
    for (int64_t head = 0; head < a_.n_kv_heads; ++head) {
      Head& one = heads.emplace_back(Head{LayerKv::Codes(kv_, head), {kv_, head}});
      look(head, n, one);
      AttendArgs args;
      args.q = q.row(0) + head * n_heads_ * a_.d_head;
      args.ld_q = q.stride;
      args.n_q = n;
      args.n_heads = n_heads_;
      args.d_head = a_.d_head;
      args.segments = std::span(one.segments).subspan(kv_.recipe().is_coded() ? 0 : 1);
      args.n_ctx = kv_.n_slots();
      args.scale = static_cast<float>(a_.scale);
      args.soft_cap = static_cast<float>(a_.soft_cap);
      args.out = z.row(0) + head * n_heads_ * a_.d_head;
      args.ld_out = z.stride;
      if (with_weights) args.weights = weights_.data() + head * n_weights;
      if (has_absorbed) args.lse = lse.data() + head * n * n_heads_;
      jobs.push_back(args);
    }
    quern::attend(jobs);
    if (with_weights) observe(n);
    if (has_absorbed) read_absorbed(q, lse, z);
  }

 private:
  struct Head {
    LayerKv::Codes codes;
    LayerKv::Exact exact;
    std::array<int64_t, kRows> begin{}, coded{}, end{};
    std::array<KvSegment, 2> segments{};
  };

  void look(int64_t head, int64_t n, Head& one) const {
    const std::vector<int32_t>& positions = kv_.slots().positions[static_cast<size_t>(head)];
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t position = position_ + i, first = position + 1 - a_.window;
      one.end[at] = kv_.slot_of(position) + 1;
      if (a_.window > 0) {
        one.begin[at] =
            std::lower_bound(positions.begin(), positions.end(), first) - positions.begin();
      }
      one.coded[at] = std::max(one.begin[at], kv_.coded_before(position));
    }
    one.segments = {{{&one.codes, one.begin.data(), one.coded.data()},
                     {&one.exact, one.coded.data(), one.end.data()}}};
  }

  // Merges what was dropped into z; lse [n_kv_heads, n, heads of a group].
  void read_absorbed(MatrixView<const float> q, std::span<const float> lse,
                     MatrixView<float> z) const {
    const KvFeatureMaps& maps = *kv_.maps();
    const int64_t n = q.rows, d = a_.d_head;
    parallel_for(a_.n_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> phi(static_cast<size_t>(n * maps.n_features()));
      for (int64_t head = begin; head < end; ++head) {
        const int64_t kv_head = head / n_heads_;
        if (kv_.absorbed().is_empty(kv_head)) continue;
        maps.phi(head, q.col_range(head * d, d), phi.data());
        for (int64_t i = 0; i < n; ++i) {
          const int64_t at = (kv_head * n + i) * n_heads_ + head % n_heads_;
          kv_.absorbed().merge(kv_head, phi.data() + i * maps.n_features(),
                               lse[static_cast<size_t>(at)], z.row(i) + head * d);
        }
      }
    });
  }

  void observe(int64_t n) {
    const int64_t n_weights = n * n_heads_ * kv_.n_slots();
    parallel_for(a_.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        KvWeights w;
        w.weights = weights_.data() + head * n_weights;
        w.n_q = n;
        w.n_heads = n_heads_;
        w.n_slots = kv_.n_slots();
        w.position = position_;
        w.layer = layer_;
        w.first_head = head * n_heads_;
        w.positions = kv_.slots().positions[static_cast<size_t>(head)];
        kv_.policy()->observe(w, kv_.slots().scores[static_cast<size_t>(head)].data());
      }
    });
  }

  const AttentionDesc& a_;
  int64_t layer_;
  LayerKv& kv_;
  int64_t position_, n_heads_;
  std::vector<float> weights_;  // [n_kv_heads, n, n_heads, n_slots]
};

// As many queries as go together over n slots.
int64_t most_queries(const AttentionDesc& a, int64_t n_slots, bool with_weights) {
  const int64_t most = std::clamp<int64_t>(kRows / (a.n_heads / a.n_kv_heads), 1, kRows);
  if (!with_weights) return most;
  return std::clamp<int64_t>(kMostWeights / (a.n_heads * std::max<int64_t>(1, n_slots)), 1, most);
}

}  // namespace

void attend_evicting(const EvictingRows& rows) {
  const AttentionDesc& a = *rows.attention;
  LayerKv& kv = *rows.kv;
  const KvPolicy& policy = *kv.policy();
  for (int64_t i = 0; i < rows.q.rows;) {
    const int64_t position = rows.position + i;
    const int64_t decision = policy.next_decision(position);
    int64_t n = most_queries(a, kv.n_slots() + kRows, policy.reads_weights());
    n = std::min({n, rows.q.rows - i, decision - position});
    kv.put(position, rows.k.row_range(i, n), rows.v.row_range(i, n));
    const MatrixView<const float> q = rows.q.row_range(i, n);
    Part(a, rows.layer, kv, position).attend(q, rows.z.row_range(i, n), policy.reads_weights());
    if (kv.slots().is_open) kv.slots().keep_queries(q, policy.n_prompt_queries());
    i += n;
    if (position + n != decision) continue;
    if (policy.n_prompt_queries() > 0) {
      end_prompt(a, rows.layer, kv);
    } else if (kv.evict() && policy.n_moving() > 0) {
      const KvSlots& slots = kv.slots();
      Matrix<float> k(slots.n_moving(), slots.moving_width);
      std::copy(slots.moving.begin(), slots.moving.end(), k.data());
      rows.place(k.view(), slots.n_dropped);
      kv.rewrite(KvSide::kKeys, 0, k.view());
    }
  }
}

void end_prompt(const AttentionDesc& a, int64_t layer, LayerKv& kv) {
  if (!kv.slots().is_open) return;
  const KvSlots& slots = kv.slots();
  const int64_t n = slots.n_queries(), end = kv.n_slots() + slots.n_dropped;
  const MatrixView<const float> q{slots.queries.data(), n, slots.query_width};
  const int64_t most = most_queries(a, kv.n_slots(), true);
  Matrix<float> z(std::min(n, most), slots.query_width);
  for (int64_t i = 0; i < n && kv.n_slots() > kv.policy()->budget(); i += most) {
    const int64_t count = std::min(most, n - i);
    Part(a, layer, kv, end - n + i)
        .attend(q.row_range(i, count), z.view().row_range(0, count), true);
  }
  kv.evict();
}

}  // namespace quern
