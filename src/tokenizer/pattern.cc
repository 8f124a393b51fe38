// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pattern.h"

#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

void cut_literal(std::string_view text, const std::string& literal,
                 std::vector<Stretch>* stretches) {
  size_t done = 0;
  for (size_t at = literal.empty() ? std::string_view::npos : text.find(literal);
       at != std::string_view::npos; at = text.find(literal, done)) {
    if (done < at) stretches->push_back({done, at, false});
    done = at + literal.size();
    stretches->push_back({at, done, true});
  }
  if (done < text.size()) stretches->push_back({done, text.size(), false});
}

void cut_characters(std::string_view text, CharacterTest test, std::vector<Stretch>* stretches) {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    const size_t end = at + c.length;
    if (test(c.code)) {
      if (done < at) stretches->push_back({done, at, false});
      stretches->push_back({at, end, true});
      done = end;
    }
    at = end;
  }
  if (done < text.size()) stretches->push_back({done, text.size(), false});
}

}  // namespace

Result<Pattern> Pattern::regex(std::string_view pattern) {
  QUERN_ASSIGN(Regex regex, Regex::compile(pattern));
  return Pattern(Kind(std::move(regex)));
}

Pattern Pattern::literal(std::string text) { return Pattern(Kind(std::move(text))); }

Pattern Pattern::characters(CharacterTest test) { return Pattern(Kind(test)); }

void Pattern::cut(std::string_view text, RegexScratch* scratch,
                  std::vector<Stretch>* stretches) const {
  stretches->clear();
  if (const auto* regex = std::get_if<Regex>(&kind_)) {
    regex->cut(text, scratch, stretches);
  } else if (const auto* literal = std::get_if<std::string>(&kind_)) {
    cut_literal(text, *literal, stretches);
  } else {
    cut_characters(text, std::get<CharacterTest>(kind_), stretches);
  }
}

}  // namespace quern::tok
