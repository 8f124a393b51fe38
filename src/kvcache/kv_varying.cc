// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_varying.h"

#include "base/check.h"

namespace quern {

void KvVaryingList::set(int64_t block, std::span<const std::vector<std::byte>> parts) {
  QUERN_CHECK(block <= size() && static_cast<int64_t>(parts.size()) == n_parts_);
  Block made;
  size_t total = 0;
  for (const std::vector<std::byte>& part : parts) total += part.size();
  made.bytes.reserve(total);
  made.begins.reserve(parts.size() + 1);
  made.begins.push_back(0);
  for (const std::vector<std::byte>& part : parts) {
    made.bytes.insert(made.bytes.end(), part.begin(), part.end());
    made.begins.push_back(static_cast<uint32_t>(made.bytes.size()));
  }
  if (block == size()) blocks_.emplace_back();
  blocks_[static_cast<size_t>(block)] = std::make_shared<const Block>(std::move(made));
}

int64_t KvVaryingList::n_bytes(int64_t first, int64_t last) const {
  int64_t total = 0;
  for (int64_t i = first; i < last; ++i) {
    total += static_cast<int64_t>(blocks_[static_cast<size_t>(i)]->bytes.size());
  }
  return total;
}

void KvVaryingList::make_own() {
  for (auto& block : blocks_) block = std::make_shared<const Block>(*block);
}

size_t KvVaryingList::n_new_bytes(std::set<const void*>& seen) const {
  size_t total = 0;
  for (const auto& block : blocks_) {
    if (!seen.insert(block.get()).second) continue;
    total += sizeof(Block) + block->bytes.capacity() + block->begins.capacity() * sizeof(uint32_t);
  }
  return total;
}

}  // namespace quern
