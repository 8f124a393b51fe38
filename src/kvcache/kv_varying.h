// SPDX-License-Identifier: Apache-2.0
// Pages that differ in size: of one layer, the parts of a block of kKeyBlock positions side by side
// in one piece of memory. Copies of a list share its blocks, which are never written: what changes
// is another block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <vector>

namespace quern {

class KvVaryingList {
 public:
  explicit KvVaryingList(int64_t n_parts = 0) : n_parts_(n_parts) {}

  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  void truncate(int64_t n) { blocks_.resize(static_cast<size_t>(n)); }
  // `parts` in their order, any of them empty. Block size() is a new one.
  void set(int64_t block, std::span<const std::vector<std::byte>> parts);

  std::span<const std::byte> at(int64_t block, int64_t part) const {
    const Block& found = *blocks_[static_cast<size_t>(block)];
    const auto i = static_cast<size_t>(part);
    return std::span(found.bytes).subspan(found.begins[i], found.begins[i + 1] - found.begins[i]);
  }
  // Of blocks [first, last), all parts.
  int64_t n_bytes(int64_t first, int64_t last) const;

  // Shares nothing any more.
  void make_own();
  // Allocated, without what is in `seen`, which gains it.
  size_t n_new_bytes(std::set<const void*>& seen) const;

 private:
  struct Block {
    std::vector<uint32_t> begins;  // [n_parts + 1]
    std::vector<std::byte> bytes;
  };
  int64_t n_parts_;
  std::vector<std::shared_ptr<const Block>> blocks_;
};

}  // namespace quern
