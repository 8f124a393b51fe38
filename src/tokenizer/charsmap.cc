// SPDX-License-Identifier: Apache-2.0
// SentencePiece's compiled normalization rules: a double-array trie (Darts) of what is replaced,
// whose values are offsets into a blob of NUL-terminated replacements.
//
// Layout, little-endian:  u32 bytes of the trie | trie of u32 units | blob
// Unit: bits 0-7 and 31 label; bit 8 has a value; bits 10-30 offset, shifted by 8 if bit 9 is set.
//
// SentencePiece takes the longest rule that matches at each place. The tokenizer.json flavour
// looks up whole grapheme clusters of less than 6 bytes, then single characters, and takes the
// shortest rule that is a prefix of what it looks up; ids depend on that, so it is kept.
#include <utf8proc.h>

#include <cstring>

#include "tokenizer/normalizer.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

constexpr size_t kMaxCharsmapBytes = size_t{16} << 20;
constexpr size_t kMaxReplacementBytes = 256;
constexpr size_t kShortGrapheme = 6;

struct Rule {
  size_t length = 0;  // bytes replaced; 0 if no rule matches
  std::string_view content;
};

class Charsmap final : public Normalizer {
 public:
  Charsmap(std::vector<uint32_t> units, std::string blob, CharsmapUnit unit)
      : units_(std::move(units)), blob_(std::move(blob)), unit_(unit) {}

  void apply(Section* section, RegexScratch*) const override {
    section->text = unit_ == CharsmapUnit::kGrapheme ? by_graphemes(section->text)
                                                     : by_longest_prefixes(section->text);
  }

 private:
  enum class Choice { kShortest, kLongest };

  Rule find(std::string_view text, Choice choice) const {
    Rule rule;
    size_t node = offset(units_[0]);
    for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      node ^= byte;
      if (node >= units_.size() || (units_[node] & 0x800000ffu) != byte) break;
      const bool has_value = (units_[node] >> 8 & 1) != 0;
      node ^= offset(units_[node]);
      if (node >= units_.size()) break;
      if (has_value) {
        const size_t at = units_[node] & 0x7fffffffu;
        if (at < blob_.size() && (static_cast<unsigned char>(blob_[at]) & 0xc0) != 0x80) {
          rule = {i + 1, std::string_view(blob_.data() + at)};
        }
        if (choice == Choice::kShortest) break;
      }
    }
    return rule;
  }

  static size_t offset(uint32_t unit) { return size_t{unit >> 10} << ((unit & 0x200u) >> 6); }

  std::string by_longest_prefixes(std::string_view text) const {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const Rule rule = find(text.substr(at), Choice::kLongest);
      const size_t n = rule.length > 0 ? rule.length : utf8_length(text[at]);
      out += rule.length > 0 ? rule.content : text.substr(at, n);
      at += n;
    }
    return out;
  }

  std::string by_graphemes(std::string_view text) const {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t end = grapheme_end(text, at);
      const std::string_view grapheme = text.substr(at, end - at);
      at = end;
      if (grapheme.size() < kShortGrapheme) {
        const Rule rule = find(grapheme, Choice::kShortest);
        if (rule.length > 0) {
          out += rule.content;
          continue;
        }
      }
      for (size_t i = 0; i < grapheme.size();) {
        const std::string_view c = grapheme.substr(i, utf8_length(grapheme[i]));
        const Rule rule = find(c, Choice::kShortest);
        out += rule.length > 0 ? rule.content : c;
        i += c.size();
      }
    }
    return out;
  }

  static size_t grapheme_end(std::string_view text, size_t at) {
    utf8proc_int32_t state = 0;
    Utf8Char c = decode_utf8(text, at);
    at += c.length;
    while (at < text.size()) {
      const Utf8Char next = decode_utf8(text, at);
      if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(c.code),
                                           static_cast<utf8proc_int32_t>(next.code), &state)) {
        break;
      }
      at += next.length;
      c = next;
    }
    return at;
  }

  std::vector<uint32_t> units_;
  std::string blob_;  // ends with NUL
  CharsmapUnit unit_;
};

}  // namespace

Result<std::unique_ptr<Normalizer>> make_charsmap(std::string_view compiled, CharsmapUnit unit) {
  if (compiled.size() > kMaxCharsmapBytes) {
    return error("charsmap: {} bytes exceed the limit of {}", compiled.size(), kMaxCharsmapBytes);
  }
  uint32_t trie_bytes = 0;
  if (compiled.size() >= 4) std::memcpy(&trie_bytes, compiled.data(), 4);
  if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > compiled.size() - 4) {
    return error("charsmap: a trie of {} bytes does not fit in {}", trie_bytes, compiled.size());
  }
  std::vector<uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), compiled.data() + 4, trie_bytes);
  std::string blob(compiled.substr(4 + trie_bytes));
  if (!is_valid_utf8(blob)) return error("charsmap: replacements are not valid UTF-8");
  blob.push_back('\0');
  for (size_t begin = 0, end = 0; begin < blob.size(); begin = end + 1) {
    end = blob.find('\0', begin);
    if (end - begin > kMaxReplacementBytes) {
      return error("charsmap: a replacement of {} bytes exceeds the limit of {}", end - begin,
                   kMaxReplacementBytes);
    }
  }
  return std::unique_ptr<Normalizer>(
      std::make_unique<Charsmap>(std::move(units), std::move(blob), unit));
}

}  // namespace quern::tok
