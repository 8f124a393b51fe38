// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "tokenizer/byte_level.h"
#include "tokenizer/model.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

class NormalFormStep final : public Normalizer {
 public:
  explicit NormalFormStep(NormalForm form) : form_(form) {}
  void apply(Section* section, RegexScratch*) const override {
    if (!is_ascii(section->text)) section->text = to_normal_form(section->text, form_);
  }

 private:
  NormalForm form_;
};

// Calls put(code) for every character.
template <class Put>
void each_character(std::string_view text, const Put& put) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    put(c.code);
    at += c.length;
  }
}

class Lowercase final : public Normalizer {
 public:
  void apply(Section* section, RegexScratch*) const override {
    std::string lower;
    lower.reserve(section->text.size());
    each_character(section->text, [&lower](uint32_t code) {
      if (code == 0x130) {  // the one letter whose lower case is two characters
        lower += "i\xcc\x87";
      } else {
        append_utf8(&lower,
                    static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
      }
    });
    section->text = std::move(lower);
  }
};

class StripAccents final : public Normalizer {
 public:
  void apply(Section* section, RegexScratch*) const override {
    std::string kept;
    kept.reserve(section->text.size());
    each_character(section->text, [&kept](uint32_t code) {
      if (!is_mark(code)) append_utf8(&kept, code);
    });
    section->text = std::move(kept);
  }
};

class Strip final : public Normalizer {
 public:
  explicit Strip(Ends ends) : ends_(ends) {}

  void apply(Section* section, RegexScratch*) const override {
    const std::string_view text = section->text;
    size_t begin = 0, end = text.size();
    while (ends_ != Ends::kRight && begin < end) {
      const Utf8Char c = decode_utf8(text, begin);
      if (!is_whitespace(c.code)) break;
      begin += c.length;
    }
    while (ends_ != Ends::kLeft && begin < end) {
      size_t last = end - 1;
      while ((static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
      if (!is_whitespace(decode_utf8(text, last).code)) break;
      end = last;
    }
    if (begin > 0) section->origin = Origin::kSection;
    section->text = section->text.substr(begin, end - begin);
  }

 private:
  Ends ends_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(Section* section, RegexScratch*) const override {
    if (section->text.empty() || section->origin == Origin::kRawBytes) return;
    section->text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(Section* section, RegexScratch* scratch) const override {
    std::vector<Stretch> stretches;
    pattern_.cut(section->text, scratch, &stretches);
    std::string text;
    for (const Stretch& s : stretches) {
      if (s.is_match) {
        text += content_;
      } else {
        text.append(section->text, s.begin, s.end - s.begin);
      }
    }
    section->text = std::move(text);
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class ByteCharacters final : public Normalizer {
 public:
  void apply(Section* section, RegexScratch*) const override {
    section->text = to_byte_characters(section->text);
  }
};

class SpaceRulesStep final : public Normalizer {
 public:
  explicit SpaceRulesStep(const SpaceRules& rules) : rules_(rules) {}

  void apply(Section* section, RegexScratch*) const override {
    std::string& text = section->text;
    if (rules_.remove_extra) {
      const auto both_spaces = [](char a, char b) { return a == ' ' && b == ' '; };
      text.erase(std::unique(text.begin(), text.end(), both_spaces), text.end());
      if (text.starts_with(' ')) text.erase(0, 1);
    }
    const bool adds_prefix = rules_.add_prefix && !rules_.add_suffix && !text.empty() &&
                             section->origin != Origin::kRawBytes;
    if (adds_prefix) text.insert(text.begin(), ' ');
    if (rules_.remove_extra) {
      // A "▁" written in the text counts as a space here, and only here.
      while (text.ends_with(' ') || text.ends_with(kMetaspace)) {
        text.resize(text.size() - (text.ends_with(' ') ? 1 : kMetaspace.size()));
      }
    }
    if (rules_.add_prefix && rules_.add_suffix && !text.empty()) text += ' ';
  }

 private:
  SpaceRules rules_;
};

}  // namespace

// Characters are decomposed one by one and marks sorted here by combining class: utf8proc's own
// ordering takes quadratic time on long runs of marks.
std::string to_normal_form(std::string_view text, NormalForm form) {
  const bool is_compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool is_composed = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const int decompose = UTF8PROC_DECOMPOSE | (is_compatible ? UTF8PROC_COMPAT : 0);
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  each_character(text, [&](uint32_t code) {
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts, 32,
                                           static_cast<utf8proc_option_t>(decompose), &boundary);
    if (n < 1 || n > 32) {
      codes.push_back(static_cast<utf8proc_int32_t>(code));
    } else {
      codes.insert(codes.end(), parts, parts + n);
    }
  });
  const auto combining = [](utf8proc_int32_t code) {
    return utf8proc_get_property(code)->combining_class;
  };
  for (auto at = codes.begin(); at != codes.end();) {
    const auto end = std::find_if(at, codes.end(), [&](auto code) { return combining(code) == 0; });
    if (end - at > 1) {
      std::stable_sort(at, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    }
    at = end == codes.end() ? end : end + 1;
  }
  auto n = static_cast<utf8proc_ssize_t>(codes.size());
  if (is_composed && n > 0) {
    n = utf8proc_normalize_utf32(
        codes.data(), n, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  }
  std::string normal;
  normal.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n; ++i) append_utf8(&normal, static_cast<uint32_t>(codes[i]));
  return normal;
}

std::unique_ptr<Normalizer> make_normal_form(NormalForm form) {
  return std::make_unique<NormalFormStep>(form);
}
std::unique_ptr<Normalizer> make_lowercase() { return std::make_unique<Lowercase>(); }
std::unique_ptr<Normalizer> make_strip(Ends ends) { return std::make_unique<Strip>(ends); }
std::unique_ptr<Normalizer> make_strip_accents() { return std::make_unique<StripAccents>(); }
std::unique_ptr<Normalizer> make_prepend(std::string prefix) {
  return std::make_unique<Prepend>(std::move(prefix));
}
std::unique_ptr<Normalizer> make_replace(Pattern pattern, std::string content) {
  return std::make_unique<Replace>(std::move(pattern), std::move(content));
}
std::unique_ptr<Normalizer> make_byte_characters() { return std::make_unique<ByteCharacters>(); }
std::unique_ptr<Normalizer> make_space_rules(const SpaceRules& rules) {
  return std::make_unique<SpaceRulesStep>(rules);
}

}  // namespace quern::tok
