// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/vocabulary.h"

#include <xxhash.h>

namespace quern::tok {

size_t Vocabulary::Hash::operator()(std::string_view text) const {
  return static_cast<size_t>(XXH3_64bits(text.data(), text.size()));
}

Status Vocabulary::add(std::string_view text, int64_t id) {
  if (id < 0 || id >= limit_) {
    return error("token '{}': id {} is not in [0, {})", text.substr(0, 64), id, limit_);
  }
  if (text.size() > kMaxTokenBytes) {
    return error("token {}: {} bytes exceed the limit of {}", id, text.size(), kMaxTokenBytes);
  }
  if (has(static_cast<Token>(id))) {
    return error("tokens '{}' and '{}' share the id {}", texts_[id].text.substr(0, 64),
                 text.substr(0, 64), id);
  }
  if (!text.empty() && !ids_.emplace(text, static_cast<Token>(id)).second) {
    return error("token '{}' has the ids {} and {}", text.substr(0, 64), *find(text), id);
  }
  if (static_cast<size_t>(id) >= texts_.size()) texts_.resize(static_cast<size_t>(id) + 1);
  texts_[static_cast<size_t>(id)] = {std::string(text), true};
  longest_ = std::max(longest_, text.size());
  return {};
}

std::optional<Token> Vocabulary::find(std::string_view text) const {
  const auto found = ids_.find(text);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::string_view Vocabulary::text(Token id) const {
  return has(id) ? std::string_view(texts_[static_cast<size_t>(id)].text) : std::string_view();
}

bool Vocabulary::has(Token id) const {
  return id >= 0 && static_cast<size_t>(id) < texts_.size() &&
         texts_[static_cast<size_t>(id)].is_used;
}

std::vector<std::optional<Token>> Vocabulary::byte_tokens() const {
  std::vector<std::optional<Token>> tokens(256);
  for (unsigned byte = 0; byte < 256; ++byte) tokens[byte] = find(fmt::format("<0x{:02X}>", byte));
  return tokens;
}

}  // namespace quern::tok
