// SPDX-License-Identifier: Apache-2.0
// What a text is cut at: a regular expression, a literal string, or a class of characters.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "tokenizer/regex.h"

namespace quern::tok {

// Where a stretch of text begins; decides whether a space or its mark is put in front.
enum class Origin {
  kInput,     // at the first character of the input
  kSection,   // elsewhere: after a special token, or within a section
  kRawBytes,  // right after bytes that are not text, which it continues
};

using CharacterTest = bool (*)(uint32_t code);

class Pattern {
 public:
  static Result<Pattern> regex(std::string_view pattern);
  static Pattern literal(std::string text);       // an empty one matches nothing
  static Pattern characters(CharacterTest test);  // each character is a match of its own

  // The stretches of `text` in order, covering it.
  void cut(std::string_view text, RegexScratch* scratch, std::vector<Stretch>* stretches) const;

 private:
  using Kind = std::variant<Regex, std::string, CharacterTest>;
  explicit Pattern(Kind kind) : kind_(std::move(kind)) {}
  Kind kind_;
};

}  // namespace quern::tok
