// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_blocks.h"

#include <algorithm>

#include "base/check.h"

namespace quern {

std::shared_ptr<KvBlockList::Slab> KvBlockList::make_slab(int64_t n) const {
  const auto n_bytes = static_cast<size_t>(n_parts_ * n * part_bytes_);
  return std::make_shared<Slab>(Slab{n, AlignedVector<std::byte>(n_bytes)});
}

int64_t KvBlockList::n_spare() const {
  return spare_ == nullptr ? 0 : spare_->n_blocks - spare_at_;
}

void KvBlockList::reserve(int64_t n) {
  if (n - size() <= n_spare()) return;  // else what was spare goes with its slab
  spare_ = make_slab(n - size());
  spare_at_ = 0;
}

void KvBlockList::resize(int64_t n) {
  if (n < size()) blocks_.resize(static_cast<size_t>(n));
  while (size() < n) {
    // An eighth more than is there: doubling would show.
    if (n_spare() == 0) reserve(std::max(n, size() + size() / 8));
    blocks_.push_back(std::make_shared<Block>(Block{spare_, spare_at_++}));
  }
  if (n_spare() == 0) spare_ = nullptr;
}

void KvBlockList::drop_front(int64_t n) {
  QUERN_CHECK(n >= 0 && n <= size());
  blocks_.erase(blocks_.begin(), blocks_.begin() + n);
}

void KvBlockList::make_own(int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    std::shared_ptr<Block>& block = blocks_[static_cast<size_t>(i)];
    if (block.use_count() == 1) continue;
    const std::shared_ptr<Block> own = std::make_shared<Block>(Block{make_slab(1), 0});
    for (int64_t part = 0; part < n_parts_; ++part) {
      std::copy_n(at(i, part), part_bytes_, own->slab->bytes.data() + part * part_bytes_);
    }
    block = own;
  }
}

void KvBlockList::make_own(int64_t room) {
  KvBlockList copied(part_bytes_, n_parts_);
  copied.reserve(std::max(room, size()));
  copied.resize(size());
  for (int64_t i = 0; i < size(); ++i) {
    for (int64_t part = 0; part < n_parts_; ++part) {
      std::copy_n(at(i, part), part_bytes_, copied.own(i, part));
    }
  }
  *this = std::move(copied);
}

size_t KvBlockList::n_new_bytes(std::set<const void*>& seen) const {
  size_t total = 0;
  const auto count = [&](const Slab* slab) {
    if (seen.insert(slab).second) total += slab->bytes.size();
  };
  for (const std::shared_ptr<Block>& block : blocks_) count(block->slab.get());
  if (spare_ != nullptr) count(spare_.get());
  return total;
}

}  // namespace quern
