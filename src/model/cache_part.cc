// SPDX-License-Identifier: Apache-2.0
#include "model/cache_part.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/attention.h"

namespace quern {
namespace {

constexpr int64_t kMostWeights = 4 << 20;  // floats of the weights of a part

}  // namespace

int64_t CachePart::most_queries(const AttentionDesc& a, int64_t n_slots, bool with_weights) {
  const int64_t most = std::clamp<int64_t>(kRows / (a.n_heads / a.n_kv_heads), 1, kRows);
  if (!with_weights) return most;
  return std::clamp<int64_t>(kMostWeights / (a.n_heads * std::max<int64_t>(1, n_slots)), 1, most);
}

void CachePart::attend(MatrixView<const float> q, MatrixView<float> z, bool with_weights) {
  const int64_t n = q.rows;
  std::vector<Head> heads_seen;
  std::vector<AttendArgs> jobs;
  heads_seen.reserve(static_cast<size_t>(a_.n_kv_heads));  // jobs point into it
  const int64_t n_weights = n * heads() * kv_.n_slots();
  if (with_weights) weights_.resize(static_cast<size_t>(a_.n_kv_heads * n_weights));
  const bool has_absorbed = kv_.maps() != nullptr && kv_.slots().n_dropped > 0;
  std::vector<float> lse(static_cast<size_t>(has_absorbed ? n * a_.n_heads : 0));
  for (int64_t head = 0; head < a_.n_kv_heads; ++head) {
    Head& one = heads_seen.emplace_back(Head{LayerKv::Codes(kv_, head), {kv_, head}});
    look(head, n, one);
    AttendArgs args;
    args.q = q.row(0) + head * heads() * a_.d_head;
    args.ld_q = q.stride;
    args.n_q = n;
    args.n_heads = heads();
    args.d_head = a_.d_head;
    args.segments = std::span(one.segments).subspan(kv_.recipe().is_coded() ? 0 : 1);
    args.n_ctx = kv_.n_slots();
    args.scale = static_cast<float>(a_.scale);
    args.soft_cap = static_cast<float>(a_.soft_cap);
    args.out = z.row(0) + head * heads() * a_.d_head;
    args.ld_out = z.stride;
    if (with_weights) args.weights = weights_.data() + head * n_weights;
    if (has_absorbed) args.lse = lse.data() + head * n * heads();
    jobs.push_back(args);
  }
  quern::attend(jobs);
  if (has_absorbed) read_absorbed(q, lse, z);
}

void CachePart::read_absorbed(MatrixView<const float> q, std::span<const float> lse,
                              MatrixView<float> z) const {
  const KvFeatureMaps& maps = *kv_.maps();
  const int64_t n = q.rows, d = a_.d_head;
  parallel_for(a_.n_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> phi(static_cast<size_t>(n * maps.n_features()));
    for (int64_t head = begin; head < end; ++head) {
      const int64_t kv_head = head / heads();
      if (kv_.absorbed().is_empty(kv_head)) continue;
      maps.phi(head, q.col_range(head * d, d), phi.data());
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = (kv_head * n + i) * heads() + head % heads();
        kv_.absorbed().merge(kv_head, phi.data() + i * maps.n_features(),
                             lse[static_cast<size_t>(at)], z.row(i) + head * d);
      }
    }
  });
}

void CachePart::look(int64_t head, int64_t n, Head& one) const {
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t position = position_ + i;
    one.end[at] = kv_.slot_of(position) + 1;
    if (a_.window > 0) one.begin[at] = kv_.first_slot(head, position + 1 - a_.window);
    one.coded[at] = std::max(one.begin[at], kv_.coded_before(position));
  }
  one.segments = {{{&one.codes, one.begin.data(), one.coded.data()},
                   {&one.exact, one.coded.data(), one.end.data()}}};
}

}  // namespace quern
