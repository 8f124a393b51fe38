// SPDX-License-Identifier: Apache-2.0
// The regular expressions of tokenizer files. They are written for Oniguruma (Ruby syntax); a
// translator turns the subset that tokenizers use into PCRE2 with the same meaning and refuses the
// rest, so that a pattern is never silently read another way. Two differences remain: character
// properties are those of PCRE2's Unicode (14 in 10.42), and \S or \W inside a class is PCRE2's.
//
// Cost is bounded: each match has step limits, and after a few matches that hit them the rest of
// the text counts as unmatched. Ordinary patterns run compiled (JIT) in time linear in the text.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern::tok {

// A stretch of text, either matched by a pattern or lying between matches.
struct Stretch {
  size_t begin = 0, end = 0;
  bool is_match = false;
};

// Working memory of matching; one per thread of work, reused across calls.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

class Regex {
 public:
  static Result<Regex> compile(std::string_view pattern);
  Regex(Regex&&) noexcept;
  ~Regex();

  // Cuts `text` (valid UTF-8) into matches and what lies between; covers all of it in order.
  // Empty matches appear as empty stretches.
  void cut(std::string_view text, RegexScratch* scratch, std::vector<Stretch>* stretches) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

// The PCRE2 pattern that means what `pattern` means to the reference.
Result<std::string> translate_pattern(std::string_view pattern);

}  // namespace quern::tok
