// SPDX-License-Identifier: Apache-2.0
// The tokens of a model: id to text and back. Ids may leave holes; texts and ids are unique.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace quern::tok {

constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
constexpr size_t kMaxTokenBytes = size_t{64} << 10;

class Vocabulary {
 public:
  // Ids may go so far beyond the number of tokens: a small file must not ask for a large table.
  explicit Vocabulary(size_t n_tokens)
      : limit_(std::min(kMaxVocabulary, 4 * static_cast<int64_t>(n_tokens) + 65536)) {}

  // Refuses an id or a text that is there already, is out of range, or is too long. An empty text
  // takes its id but is never found.
  Status add(std::string_view text, int64_t id);

  std::optional<Token> find(std::string_view text) const;
  // Empty for ids that name nothing.
  std::string_view text(Token id) const;
  bool has(Token id) const;

  int64_t end_id() const { return static_cast<int64_t>(texts_.size()); }  // largest id + 1
  size_t longest() const { return longest_; }

  // Ids of "<0x00>" to "<0xFF>", where the vocabulary has them.
  std::vector<std::optional<Token>> byte_tokens() const;

 private:
  struct Entry {
    std::string text;
    bool is_used = false;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const;
  };

  std::vector<Entry> texts_;
  std::unordered_map<std::string, Token, Hash, std::equal_to<>> ids_;
  int64_t limit_ = 0;
  size_t longest_ = 0;
};

}  // namespace quern::tok
