// SPDX-License-Identifier: Apache-2.0
// The part of a layer's cache whose pages differ in size with what attention makes of them.
#include <atomic>

#include "base/check.h"
#include "base/parallel.h"
#include "kvcache/kv_cache.h"

namespace quern {

bool LayerKv::is_varying(KvSide side) const {
  if (!recipe_->is_coded()) return false;
  return (side == KvSide::kKeys ? *recipe_->keys : *recipe_->values).n_queries() > 0;
}

const std::byte* LayerKv::page(KvSide side, int64_t head, int64_t block) const {
  if (is_varying(side)) return varying_.at(block, varying_part(side, head)).data();
  return pages_.at(block, head) + (side == KvSide::kKeys ? 0 : key_page_);
}

int64_t LayerKv::bytes_of_pages(int64_t first, int64_t last) const {
  const int64_t fixed = (last - first) * shape_.n_kv_heads * page_bytes_;
  return adapts() ? fixed + varying_.n_bytes(first, last) : fixed;
}

void LayerKv::adapt(int64_t position, std::span<const KvAttention> seen) {
  QUERN_CHECK(adapts() && position == length_ &&
              static_cast<int64_t>(seen.size()) == shape_.n_kv_heads);
  const int64_t first = pages_.size();
  for (int64_t block = 0; block < first; ++block) {
    std::vector<std::vector<std::byte>> parts(static_cast<size_t>(2 * shape_.n_kv_heads));
    std::atomic<bool> has_changed = false;
    parallel_for(shape_.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        if (narrow(head, block, seen[static_cast<size_t>(head)], parts)) has_changed = true;
      }
    });
    if (has_changed) varying_.set(block, parts);
  }
  pages_.resize(coded_slots(position) / kKeyBlock);
  seal_from(first, seen);
}

// A head's parts of a block, narrowed or as they are; whether any was.
bool LayerKv::narrow(int64_t head, int64_t block, const KvAttention& seen,
                     std::span<std::vector<std::byte>> varying) const {
  KvAttention of_page = seen;
  of_page.weights += block * kKeyBlock;
  bool has_changed = false;
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    if (!is_varying(side)) continue;
    const int64_t part = varying_part(side, head);
    const std::span<const std::byte> page = varying_.at(block, part);
    std::vector<std::byte>& kept = varying[static_cast<size_t>(part)];
    kept = codec(side, head).narrowed(side, shape_.d_head, page.data(), of_page);
    has_changed = has_changed || !kept.empty();
    if (kept.empty()) kept.assign(page.begin(), page.end());
  }
  return has_changed;
}

}  // namespace quern
