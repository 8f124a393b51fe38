// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

// Where the character before `end` begins.
size_t previous_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

bool is_between_words(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word(decode_utf8(text, previous_character(text, begin)).code)) return false;
  return end == text.size() || !is_word(decode_utf8(text, end).code);
}

size_t strip_left(std::string_view text, size_t begin, size_t low) {
  while (begin > low) {
    const size_t at = previous_character(text, begin);
    if (!is_whitespace(decode_utf8(text, at).code)) break;
    begin = at;
  }
  return begin;
}

size_t strip_right(std::string_view text, size_t end) {
  while (end < text.size()) {
    const Utf8Char c = decode_utf8(text, end);
    if (!is_whitespace(c.code)) break;
    end += c.length;
  }
  return end;
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string_view pattern) {
  trie_.add(pattern, static_cast<uint32_t>(tokens_.size()));
  tokens_.push_back(token);
}

void AddedTokenMatcher::cut(std::string_view text, const TokenizeOptions& options,
                            std::vector<AddedMatch>* matches) const {
  matches->clear();
  size_t done = 0;
  size_t stripped_from = 1, stripped_to = 0;  // the last run of white space, walked once
  for (size_t at = 0; at < text.size() && !trie_.empty();) {
    size_t length = 0;
    const AddedToken* token = nullptr;
    trie_.prefixes(text.substr(at), [&](size_t n, uint32_t index) {
      length = n;
      token = &tokens_[index];
    });
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;
    if (token->is_special && !options.parse_special) continue;
    if (token->is_single_word && !is_between_words(text, begin, end)) continue;
    // White space that an earlier token has taken is given back if a token is found in it; the
    // reference does so, and ids depend on it.
    if (token->strips_left) begin = strip_left(text, begin, done);
    if (token->strips_right) {
      if (end < stripped_from || end > stripped_to) {
        stripped_from = end;
        stripped_to = strip_right(text, end);
      }
      end = stripped_to;
    }
    if (done < begin) matches->push_back({done, begin, std::nullopt});
    matches->push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) matches->push_back({done, text.size(), std::nullopt});
}

}  // namespace quern::tok
