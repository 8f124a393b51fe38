// SPDX-License-Identifier: Apache-2.0
// What is done to text before it is cut: Unicode normal forms, replacements, prefixes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/pattern.h"

namespace quern::tok {

// A section of the input between special tokens, on its way through the normalizers.
struct Section {
  std::string text;  // valid UTF-8
  Origin origin = Origin::kInput;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(Section* section, RegexScratch* scratch) const = 0;
};

using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
enum class Ends { kLeft, kRight, kBoth };

std::unique_ptr<Normalizer> make_normal_form(NormalForm form);
std::unique_ptr<Normalizer> make_lowercase();
std::unique_ptr<Normalizer> make_strip(Ends ends);
std::unique_ptr<Normalizer> make_strip_accents();
std::unique_ptr<Normalizer> make_prepend(std::string prefix);  // to text that is not empty
std::unique_ptr<Normalizer> make_replace(Pattern pattern, std::string content);
std::unique_ptr<Normalizer> make_byte_characters();  // bytes as the characters that show them

// SentencePiece's handling of spaces, written with U+0020 before kMetaspace takes its place.
struct SpaceRules {
  bool remove_extra = true;  // leading, trailing and repeated spaces
  bool add_prefix = true;
  bool add_suffix = false;  // instead of the prefix: spaces belong to the word before them
};
std::unique_ptr<Normalizer> make_space_rules(const SpaceRules& rules);

// The compiled rules of SentencePiece (nmt_nfkc and its kin); see charsmap.cc.
enum class CharsmapUnit { kGrapheme, kLongestPrefix };
Result<std::unique_ptr<Normalizer>> make_charsmap(std::string_view compiled, CharsmapUnit unit);

// The text in a Unicode normal form; linear in the length whatever the combining marks. The
// reference of tokenizer.json has older tables: marks that Unicode gained since (U+FE2E) are put
// in canonical order here and not there.
std::string to_normal_form(std::string_view text, NormalForm form);

}  // namespace quern::tok
