// SPDX-License-Identifier: Apache-2.0
// Bytes of one layer's cache in blocks of kKeyBlock positions, of all heads together. Copies of a
// list share its blocks: a block that several lists hold is never written, who writes copies it
// first. So a fork of a cache costs what it writes from then on.
//
// A block has one or more parts of equal size. Blocks are cut from slabs, which grow with the list
// and hold one part of all their blocks after the other: what attention reads in a row lies in a
// row. Halves in pieces of 8 KB cost a quarter of its speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "tensor/matrix.h"

namespace quern {

class KvBlockList {
 public:
  explicit KvBlockList(int64_t part_bytes = 0, int64_t n_parts = 1)
      : part_bytes_(part_bytes), n_parts_(n_parts) {}
  KvBlockList(const KvBlockList& other)
      : part_bytes_(other.part_bytes_), n_parts_(other.n_parts_), blocks_(other.blocks_) {}
  KvBlockList& operator=(const KvBlockList& other) { return *this = KvBlockList(other); }
  KvBlockList(KvBlockList&&) = default;
  KvBlockList& operator=(KvBlockList&&) = default;
  ~KvBlockList() = default;

  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  void reserve(int64_t n);     // room for n blocks in all
  void resize(int64_t n);      // new blocks are zero
  void drop_front(int64_t n);  // the others move up

  const std::byte* at(int64_t block, int64_t part = 0) const { return place(block, part); }
  // Makes blocks [first, last) this list's own; from one thread.
  void make_own(int64_t first, int64_t last);
  // All of them, side by side, with room for `room` blocks if that is more.
  void make_own(int64_t room);
  // Of a block that is its own: not checked, for many threads.
  std::byte* own(int64_t block, int64_t part = 0) { return place(block, part); }

  // Allocated: of the slabs that `seen` lacks, which gains them.
  size_t n_new_bytes(std::set<const void*>& seen) const;

 private:
  struct Slab {
    int64_t n_blocks;
    AlignedVector<std::byte> bytes;  // [n_parts, n_blocks, part_bytes]
  };
  struct Block {
    std::shared_ptr<Slab> slab;
    int64_t at;
  };
  std::byte* place(int64_t block, int64_t part) const {
    const Block& found = *blocks_[static_cast<size_t>(block)];
    return found.slab->bytes.data() + (part * found.slab->n_blocks + found.at) * part_bytes_;
  }
  std::shared_ptr<Slab> make_slab(int64_t n) const;
  int64_t n_spare() const;

  int64_t part_bytes_, n_parts_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<Slab> spare_;  // its blocks from spare_at_ on are no list's yet; not copied
  int64_t spare_at_ = 0;
};

}  // namespace quern
