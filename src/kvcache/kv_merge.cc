// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_merge.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "spec/registry.h"

namespace quern {

#define QUERN_KV_MERGE(name) extern const KvMergeInfo name##_merge_info;
#include "kvcache/merges.inc"
#undef QUERN_KV_MERGE

std::span<const KvMergeInfo> kv_merges() {
  static const KvMergeInfo rows[] = {
#define QUERN_KV_MERGE(name) name##_merge_info,
#include "kvcache/merges.inc"
#undef QUERN_KV_MERGE
  };
  return rows;
}

Result<std::unique_ptr<KvMerge>> make_kv_merge(const spec::Call& call) {
  return spec::make(kv_merges(), call, "kv merge rule");
}

void KvOpenSlot::add(bool starts, float weight, float* k, float* v) {
  if (starts) rows_.clear();
  const bool is_first = rows_.empty();
  const auto d = static_cast<size_t>(d_head_), row = static_cast<size_t>(width());
  if (window_ == 0 && !is_first) {
    rows_[0] += weight;
    const float share = weight / rows_[0];
    for (float* x : {k, v}) {
      float* mean = rows_.data() + (x == k ? 1 : 1 + d);
      for (size_t c = 0; c < d; ++c) x[c] = mean[c] += share * (x[c] - mean[c]);
    }
    return;
  }
  if (rows_.size() == static_cast<size_t>(most_rows()) * row) {
    rows_.erase(rows_.begin(), rows_.begin() + width());
  }
  if (rows_.empty()) rows_.reserve(row);
  rows_.push_back(weight);
  rows_.insert(rows_.end(), k, k + d);
  rows_.insert(rows_.end(), v, v + d);
  if (rows_.size() == row) return;
  // From the tokens themselves: sums that tokens join and leave would drift.
  float total = 0;
  for (size_t i = 0; i < rows_.size(); i += row) total += rows_[i];
  std::fill_n(k, d, 0.0f);
  std::fill_n(v, d, 0.0f);
  for (size_t i = 0; i < rows_.size(); i += row) {
    const float share = rows_[i] / total;
    kernels().axpy(share, rows_.data() + i + 1, d_head_, k);
    kernels().axpy(share, rows_.data() + i + 1 + d, d_head_, v);
  }
}

}  // namespace quern
