// SPDX-License-Identifier: Apache-2.0
#include "model/merging.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/parallel.h"
#include "kernels/attention.h"

namespace quern {
namespace {

constexpr int64_t kRows = 64;  // queries times heads that go together, as elsewhere

// Consecutive queries of one KV head, none of which joins but maybe the first.
class Run {
 public:
  Run(const MergingRows& rows, int64_t head, int64_t first, int64_t n)
      : rows_(rows), head_(head), first_(first), n_(n), exact_(kept().slots, 0) {}

  void store() {
    const int64_t d = rows_.attention->d_head;
    const MatrixView<const float> k = rows_.k.row_range(first_, n_).col_range(head_ * d, d);
    const MatrixView<const float> v = rows_.v.row_range(first_, n_).col_range(head_ * d, d);
    KvMergedHead& head = kept();
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t position = rows_.position + first_ + i;
      if (rows_.joins[(first_ + i) * n_kv_heads() + head_] != 0) {
        head.join(position, k.row_range(i, 1), v.row_range(i, 1));
      } else {
        head.start(position, k.row_range(i, 1), v.row_range(i, 1));
      }
    }
  }

  // Points into the run.
  AttendArgs job(MatrixView<float> z) {
    const AttentionDesc& a = *rows_.attention;
    const int64_t n_heads = a.n_heads / a.n_kv_heads, n_slots = kept().slots.n_slots();
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t position = rows_.position + first_ + i;
      begin_[static_cast<size_t>(i)] = a.window > 0 ? kept().slot_from(position + 1 - a.window) : 0;
      end_[static_cast<size_t>(i)] = n_slots - (n_ - 1 - i);
    }
    segment_ = {&exact_, begin_.data(), end_.data()};
    AttendArgs args;
    args.q = rows_.q.row(first_) + head_ * n_heads * a.d_head;
    args.ld_q = rows_.q.stride;
    args.n_q = n_;
    args.n_heads = n_heads;
    args.d_head = a.d_head;
    args.segments = {&segment_, 1};
    args.n_ctx = n_slots;
    args.scale = static_cast<float>(a.scale);
    args.soft_cap = static_cast<float>(a.soft_cap);
    args.out = z.row(first_) + head_ * n_heads * a.d_head;
    args.ld_out = z.stride;
    return args;
  }

 private:
  int64_t n_kv_heads() const { return rows_.attention->n_kv_heads; }
  KvMergedHead& kept() const { return rows_.kv->merged()[static_cast<size_t>(head_)]; }

  const MergingRows& rows_;
  int64_t head_, first_, n_;
  LayerKv::Exact exact_;
  std::array<int64_t, kRows> begin_{}, end_{};
  KvSegment segment_{};
};

// Rows from `first` on that go together.
int64_t run_length(const MergingRows& rows, int64_t head, int64_t first) {
  const AttentionDesc& a = *rows.attention;
  const int64_t most = std::clamp<int64_t>(kRows / (a.n_heads / a.n_kv_heads), 1, kRows);
  const int64_t end = std::min(rows.q.rows, first + most);
  int64_t i = first + 1;
  while (i < end && rows.joins[i * a.n_kv_heads + head] == 0) ++i;
  return i - first;
}

}  // namespace

void pool_rows(const MergingRows& rows) {
  const AttentionDesc& a = *rows.attention;
  const KvMerge& merge = *rows.kv->merge();
  const int64_t n = rows.q.rows, heads = a.n_kv_heads;
  std::vector<float> weights(static_cast<size_t>(n * heads));
  merge.decide({a.n_heads, heads, a.d_head}, rows.q, rows.k, rows.joins, weights.data());
  if (rows.position == 0) std::fill_n(rows.joins, heads, uint8_t{0});
  merge.clear(a.d_head, rows.q);
  merge.clear(a.d_head, rows.k);
  parallel_for(heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      KvOpenSlot& open = rows.kv->merged()[static_cast<size_t>(head)].open;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = i * heads + head;
        open.add(rows.joins[at] == 0, weights[static_cast<size_t>(at)],
                 rows.k.row(i) + head * a.d_head, rows.v.row(i) + head * a.d_head);
      }
    }
  });
}

void attend_merging(const MergingRows& rows, MatrixView<float> z) {
  const AttentionDesc& a = *rows.attention;
  rows.kv->merge()->clear(a.d_head, rows.q);
  rows.kv->merge()->clear(a.d_head, rows.k);
  std::vector<int64_t> done(static_cast<size_t>(a.n_kv_heads));
  std::vector<Run> runs;
  runs.reserve(done.size());  // jobs point into it
  std::vector<AttendArgs> jobs;
  do {
    runs.clear();
    jobs.clear();
    for (int64_t head = 0; head < a.n_kv_heads; ++head) {
      int64_t& first = done[static_cast<size_t>(head)];
      if (first == rows.q.rows) continue;
      const int64_t n = run_length(rows, head, first);
      Run& run = runs.emplace_back(rows, head, first, n);
      run.store();
      jobs.push_back(run.job(z));
      first += n;
    }
    attend(jobs);
  } while (!jobs.empty());
}

}  // namespace quern
