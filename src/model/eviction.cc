// SPDX-License-Identifier: Apache-2.0
#include "model/eviction.h"

#include <algorithm>

#include "base/parallel.h"
#include "model/cache_part.h"

namespace quern {
namespace {

// Tells the policy what n queries from `position` on attend to.
void observe(const AttentionDesc& a, int64_t layer, LayerKv& kv, const CachePart& part,
             int64_t position, int64_t n) {
  parallel_for(a.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      KvWeights w;
      w.weights = part.weights(head);
      w.n_q = n;
      w.n_heads = part.heads();
      w.n_slots = kv.n_slots();
      w.position = position;
      w.layer = layer;
      w.first_head = head * part.heads();
      w.positions = kv.slots().positions[static_cast<size_t>(head)];
      kv.policy()->observe(w, kv.slots().scores[static_cast<size_t>(head)].data());
    }
  });
}

}  // namespace

void attend_evicting(const EvictingRows& rows) {
  const AttentionDesc& a = *rows.attention;
  LayerKv& kv = *rows.kv;
  const KvPolicy& policy = *kv.policy();
  for (int64_t i = 0; i < rows.q.rows;) {
    const int64_t position = rows.position + i;
    const int64_t decision = policy.next_decision(position);
    int64_t n = CachePart::most_queries(a, kv.n_slots() + kKeyBlock, policy.reads_weights());
    n = std::min({n, rows.q.rows - i, decision - position});
    kv.put(position, rows.k.row_range(i, n), rows.v.row_range(i, n));
    const MatrixView<const float> q = rows.q.row_range(i, n);
    CachePart part(a, kv, position);
    part.attend(q, rows.z.row_range(i, n), policy.reads_weights());
    if (policy.reads_weights()) observe(a, rows.layer, kv, part, position, n);
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
  const int64_t most = CachePart::most_queries(a, kv.n_slots(), true);
  Matrix<float> z(std::min(n, most), slots.query_width);
  for (int64_t i = 0; i < n && kv.n_slots() > kv.policy()->budget(); i += most) {
    const int64_t count = std::min(most, n - i);
    CachePart part(a, kv, end - n + i);
    part.attend(q.row_range(i, count), z.view().row_range(0, count), true);
    observe(a, layer, kv, part, end - n + i, count);
  }
  kv.evict();
}

}  // namespace quern
