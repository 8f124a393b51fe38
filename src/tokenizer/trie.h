// SPDX-License-Identifier: Apache-2.0
// Byte strings with an id each, found as prefixes of a text.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "tokenizer/flat_map.h"

namespace quern::tok {

class Trie {
 public:
  // A string added twice keeps its last id. Empty strings are not added.
  void add(std::string_view text, uint32_t id) {
    if (text.empty()) return;
    uint64_t node = 0;
    for (const char c : text) {
      node = edges_.insert(edge(node, c), edges_.size() + 1);
    }
    ids_.insert(node, id) = id;
    starts_[static_cast<unsigned char>(text[0])] = true;
  }

  // Calls visit(length, id) for every added string that `text` starts with, shortest first.
  template <class Visit>
  void prefixes(std::string_view text, const Visit& visit) const {
    if (text.empty() || !starts_[static_cast<unsigned char>(text[0])]) return;
    uint64_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const uint64_t* next = edges_.find(edge(node, text[i]));
      if (next == nullptr) return;
      node = *next;
      if (const uint64_t* id = ids_.find(node)) visit(i + 1, static_cast<uint32_t>(*id));
    }
  }

  bool empty() const { return ids_.size() == 0; }

 private:
  static uint64_t edge(uint64_t node, char c) { return node << 8 | static_cast<unsigned char>(c); }

  FlatMap edges_;  // (node, byte) -> node; node 0 is the root
  FlatMap ids_;    // node -> id
  std::array<bool, 256> starts_{};
};

}  // namespace quern::tok
