// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pretokenizer.h"

#include "tokenizer/byte_level.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

// Applies the behavior to the stretches of one piece; what is left are pieces where !is_match.
void behave(SplitBehavior behavior, std::vector<Stretch>* stretches) {
  if (behavior == SplitBehavior::kRemoved) return;
  std::vector<Stretch>& all = *stretches;
  size_t n = 0;
  bool was_match = false;
  switch (behavior) {
    case SplitBehavior::kMergedWithNext: {
      // From the back: a match opens the piece that follows it, unless that is a match itself.
      for (size_t i = all.size(); i-- > 0;) {
        const Stretch s = all[i];
        if (s.is_match && !was_match && n > 0) {
          all[all.size() - n].begin = s.begin;
        } else {
          ++n;
          all[all.size() - n] = {s.begin, s.end, false};
        }
        was_match = s.is_match;
      }
      all.erase(all.begin(), all.end() - static_cast<std::ptrdiff_t>(n));
      return;
    }
    case SplitBehavior::kMergedWithPrevious:
    case SplitBehavior::kContiguous: {
      const bool joins_alike = behavior == SplitBehavior::kContiguous;
      for (const Stretch s : all) {
        const bool joins = joins_alike ? s.is_match == was_match : s.is_match && !was_match;
        if (joins && n > 0) {
          all[n - 1].end = s.end;
        } else {
          all[n++] = {s.begin, s.end, false};
        }
        was_match = s.is_match;
      }
      all.resize(n);
      return;
    }
    default:
      for (Stretch& s : all) s.is_match = false;
  }
}

class Split final : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, SplitSense sense)
      : pattern_(std::move(pattern)), behavior_(behavior), sense_(sense) {}

  void apply(Pieces* pieces, RegexScratch* scratch) const override {
    std::vector<Pieces::Range> ranges;
    std::vector<Stretch> stretches;
    const std::string_view text = pieces->text;
    ranges.reserve(pieces->ranges.size());
    for (const auto& [begin, end] : pieces->ranges) {
      pattern_.cut(text.substr(begin, end - begin), scratch, &stretches);
      if (sense_ == SplitSense::kBetweenMatches) {
        for (Stretch& s : stretches) s.is_match = !s.is_match;
      }
      behave(behavior_, &stretches);
      for (const Stretch& s : stretches) {
        if (s.is_match || s.begin == s.end) continue;
        ranges.push_back({begin + s.begin, begin + s.end});
      }
    }
    pieces->ranges = std::move(ranges);
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  SplitSense sense_;
};

// Rewrites every piece: rewrite(piece, origin, &text) appends what takes its place. Ranges are
// then those of the new text.
template <class Rewrite>
void rewrite_pieces(Pieces* pieces, const Rewrite& rewrite) {
  std::string text;
  text.reserve(pieces->text.size() + pieces->text.size() / 4);
  const std::string_view old = pieces->text;
  if (!pieces->ranges.empty() && pieces->ranges[0].begin > 0) pieces->origin = Origin::kSection;
  Origin origin = pieces->origin;
  size_t n = 0;
  for (const auto [begin, end] : pieces->ranges) {
    const size_t start = text.size();
    rewrite(old.substr(begin, end - begin), origin, &text);
    origin = Origin::kSection;
    if (text.size() > start) pieces->ranges[n++] = {start, text.size()};
  }
  pieces->ranges.resize(n);
  pieces->text = std::move(text);
}

class Metaspace final : public PreTokenizer {
 public:
  explicit Metaspace(const MetaspaceOptions& options) : options_(options) {
    if (options.split) {
      split_ = make_split(Pattern::literal(options.replacement), SplitBehavior::kMergedWithNext);
    }
  }

  void apply(Pieces* pieces, RegexScratch* scratch) const override {
    const std::string& mark = options_.replacement;
    rewrite_pieces(pieces, [&](std::string_view piece, Origin origin, std::string* text) {
      const bool may_prepend =
          (options_.scheme == PrependScheme::kAlways && origin != Origin::kRawBytes) ||
          (options_.scheme == PrependScheme::kFirst && origin == Origin::kInput);
      if (may_prepend && !piece.starts_with(' ') && !piece.starts_with(mark)) *text += mark;
      for (const char c : piece) {
        if (c == ' ') {
          *text += mark;
        } else {
          *text += c;
        }
      }
    });
    if (split_) split_->apply(pieces, scratch);
  }

 private:
  MetaspaceOptions options_;
  std::unique_ptr<PreTokenizer> split_;
};

class PrefixSpace final : public PreTokenizer {
 public:
  void apply(Pieces* pieces, RegexScratch*) const override {
    rewrite_pieces(pieces, [](std::string_view piece, Origin origin, std::string* text) {
      if (!piece.starts_with(' ') && origin != Origin::kRawBytes) *text += ' ';
      text->append(piece);
    });
  }
};

class ByteLevelStep final : public PreTokenizer {
 public:
  void apply(Pieces* pieces, RegexScratch*) const override {
    rewrite_pieces(pieces, [](std::string_view piece, Origin, std::string* text) {
      *text += to_byte_characters(piece);
    });
  }
};

class Words final : public PreTokenizer {
 public:
  void apply(Pieces* pieces, RegexScratch*) const override {
    enum class Kind { kSpace, kWord, kOther };
    std::vector<Pieces::Range> ranges;
    const std::string_view text = pieces->text;
    for (const auto& [begin, end] : pieces->ranges) {
      Kind before = Kind::kSpace;
      for (size_t at = begin; at < end;) {
        const Utf8Char c = decode_utf8(text, at);
        const Kind kind = is_word(c.code)         ? Kind::kWord
                          : is_whitespace(c.code) ? Kind::kSpace
                                                  : Kind::kOther;
        if (kind != Kind::kSpace && kind == before) {
          ranges.back().end = at + c.length;
        } else if (kind != Kind::kSpace) {
          ranges.push_back({at, at + c.length});
        }
        before = kind;
        at += c.length;
      }
    }
    pieces->ranges = std::move(ranges);
  }
};

}  // namespace

std::unique_ptr<PreTokenizer> make_split(Pattern pattern, SplitBehavior behavior,
                                         SplitSense sense) {
  return std::make_unique<Split>(std::move(pattern), behavior, sense);
}
std::unique_ptr<PreTokenizer> make_metaspace(const MetaspaceOptions& options) {
  return std::make_unique<Metaspace>(options);
}
std::unique_ptr<PreTokenizer> make_prefix_space() { return std::make_unique<PrefixSpace>(); }
std::unique_ptr<PreTokenizer> make_byte_level_step() { return std::make_unique<ByteLevelStep>(); }
std::unique_ptr<PreTokenizer> make_words() { return std::make_unique<Words>(); }

}  // namespace quern::tok
