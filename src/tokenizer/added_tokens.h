// SPDX-License-Identifier: Apache-2.0
// Tokens that are found in the text before a model sees it: special tokens ("<|end|>") and tokens
// added to a trained vocabulary. Matches are the leftmost, and of those the longest; they do not
// overlap.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/trie.h"

namespace quern::tok {

// Where a token is looked for, and as what.
enum class MatchedIn {
  kInput,               // before normalization
  kNormalized,          // after it, as the normalized form of its text
  kNormalizedVerbatim,  // after it, as it is
};

struct AddedToken {
  std::string text;
  Token id = 0;
  bool is_special = false;
  bool is_single_word = false;  // only where no word character is beside it
  bool strips_left = false;     // takes the white space before it
  bool strips_right = false;
  MatchedIn matches = MatchedIn::kInput;
  std::string decoded;  // what decoders are given instead of the text; empty: the text
};

// A stretch of text, and the token it is, if it is one.
struct AddedMatch {
  size_t begin = 0, end = 0;
  std::optional<Token> id;
};

class AddedTokenMatcher {
 public:
  // `pattern` is what to look for: the token's text, or its normalized form.
  void add(const AddedToken& token, std::string_view pattern);
  bool empty() const { return trie_.empty(); }

  // Cuts `text` (valid UTF-8) into tokens and the stretches between, covering all of it. With
  // parse_special off a special token stays text.
  void cut(std::string_view text, const TokenizeOptions& options,
           std::vector<AddedMatch>* matches) const;

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;
};

}  // namespace quern::tok
