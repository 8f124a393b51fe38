// SPDX-License-Identifier: Apache-2.0
// A map from 64-bit keys to 64-bit values with open addressing: filled once, then only looked up.
// Pairs of tokens and edges of a trie are looked up once per byte of text, where std::unordered_map
// took twice the time of everything else together.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace quern::tok {

class FlatMap {
 public:
  static constexpr uint64_t kNoKey = UINT64_MAX;  // not to be used as a key

  // The value of `key`, null if absent.
  const uint64_t* find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    for (size_t at = home(key);; at = (at + 1) & mask_) {
      if (slots_[at].key == key) return &slots_[at].value;
      if (slots_[at].key == kNoKey) return nullptr;
    }
  }

  // The value of `key`, inserted as `value` if it was absent.
  uint64_t& insert(uint64_t key, uint64_t value) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    for (size_t at = home(key);; at = (at + 1) & mask_) {
      if (slots_[at].key == key) return slots_[at].value;
      if (slots_[at].key == kNoKey) {
        slots_[at] = {key, value};
        ++size_;
        return slots_[at].value;
      }
    }
  }

  size_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t key = kNoKey;
    uint64_t value = 0;
  };

  size_t home(uint64_t key) const {
    key = (key ^ (key >> 32)) * 0x9e3779b97f4a7c15u;
    return static_cast<size_t>(key >> shift_);
  }

  void grow() {
    std::vector<Slot> old = std::move(slots_);
    const size_t n = old.empty() ? 64 : old.size() * 2;
    slots_.assign(n, Slot{});
    mask_ = n - 1;
    shift_ = 64 - std::countr_zero(n);
    size_ = 0;
    for (const Slot& slot : old) {
      if (slot.key != kNoKey) insert(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  int shift_ = 63;
  size_t size_ = 0;
};

}  // namespace quern::tok
