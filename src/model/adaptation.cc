// SPDX-License-Identifier: Apache-2.0
#include "model/adaptation.h"

#include <algorithm>
#include <vector>

#include "model/cache_part.h"

namespace quern {
namespace {

double squared_norm(const AttentionDesc& a, const float* q) {
  double sum = 0;
  for (int64_t i = 0; i < a.d_head; ++i) sum += static_cast<double>(q[i]) * q[i];
  return sum * a.scale * a.scale;
}

// Asks the newest queries what they attend to, all heads of a KV head together, and gives pages
// their bits. What is too new to have met all of them counts whole.
void decide(const AttentionDesc& a, LayerKv& kv, int64_t position) {
  const KvSlots& slots = kv.slots();
  const int64_t n = slots.n_queries(), n_heads = a.n_heads / a.n_kv_heads;
  std::vector<std::vector<float>> most(static_cast<size_t>(a.n_kv_heads),
                                       std::vector<float>(static_cast<size_t>(position)));
  std::vector<KvAttention> seen(most.size());
  Matrix<float> z(1, slots.query_width);
  for (int64_t i = 0; i < n; ++i) {
    const MatrixView<const float> q{slots.queries.data() + i * slots.query_width, 1,
                                    slots.query_width};
    CachePart part(a, kv, position - n + i);
    part.attend(q, z.view(), true);
    for (int64_t head = 0; head < a.n_kv_heads; ++head) {
      std::vector<float>& largest = most[static_cast<size_t>(head)];
      KvAttention& of_head = seen[static_cast<size_t>(head)];
      for (int64_t h = 0; h < n_heads; ++h) {
        const float* weights = part.weights(head) + h * position;
        for (size_t p = 0; p < largest.size(); ++p) largest[p] = std::max(largest[p], weights[p]);
        const double norm = squared_norm(a, q.row(0) + (head * n_heads + h) * a.d_head);
        of_head.query_norm = std::max(of_head.query_norm, norm);
      }
    }
  }
  for (size_t head = 0; head < most.size(); ++head) {
    std::fill(most[head].end() - std::min(n, position), most[head].end(), 1.0f);
    seen[head].weights = most[head].data();
    seen[head].n_positions = position;
  }
  kv.adapt(position, seen);
}

}  // namespace

void attend_adapting(const AdaptingRows& rows) {
  const AttentionDesc& a = *rows.attention;
  LayerKv& kv = *rows.kv;
  KvSlots& slots = kv.slots();
  for (int64_t i = 0; i < rows.q.rows;) {
    const int64_t position = rows.position + i;
    const int64_t decision = (position / kKeyBlock + 1) * kKeyBlock;
    const int64_t most = CachePart::most_queries(a, kv.n_slots(), false);
    const int64_t n = std::min({most, rows.q.rows - i, decision - position});
    kv.put(position, rows.k.row_range(i, n), rows.v.row_range(i, n));
    const MatrixView<const float> q = rows.q.row_range(i, n);
    CachePart(a, kv, position).attend(q, rows.z.row_range(i, n), false);
    slots.keep_queries(q, kv.recipe().n_queries());
    i += n;
    if (position + n == decision) decide(a, kv, decision);
  }
}

}  // namespace quern
