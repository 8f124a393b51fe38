// SPDX-License-Identifier: Apache-2.0
// What cuts normalized text into the pieces that a model tokenizes one by one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tokenizer/pattern.h"

namespace quern::tok {

// A text and the stretches of it that are pieces: in order, not overlapping, not empty. Bytes
// between pieces have been removed.
struct Pieces {
  struct Range {
    size_t begin = 0, end = 0;
  };
  std::string text;
  std::vector<Range> ranges;
  Origin origin = Origin::kInput;  // of the first piece; the others are of kSection
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces* pieces, RegexScratch* scratch) const = 0;
};

using PreTokenizers = std::vector<std::unique_ptr<PreTokenizer>>;

// What becomes of the matches that a text is cut at.
enum class SplitBehavior {
  kIsolated,            // pieces of their own
  kRemoved,             // dropped
  kMergedWithPrevious,  // the end of the piece before
  kMergedWithNext,      // the beginning of the piece after
  kContiguous,          // pieces of their own, neighbours joined
};
enum class SplitSense { kAtMatches, kBetweenMatches };
enum class PrependScheme { kFirst, kNever, kAlways };

std::unique_ptr<PreTokenizer> make_split(Pattern pattern, SplitBehavior behavior,
                                         SplitSense sense = SplitSense::kAtMatches);

// Spaces become `replacement`, which may be put in front; pieces then begin at replacements.
struct MetaspaceOptions {
  std::string replacement = "\xe2\x96\x81";
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;
};
std::unique_ptr<PreTokenizer> make_metaspace(const MetaspaceOptions& options);

std::unique_ptr<PreTokenizer> make_prefix_space();     // where a piece does not begin with one
std::unique_ptr<PreTokenizer> make_byte_level_step();  // bytes as the characters that show them
std::unique_ptr<PreTokenizer> make_words();            // \w+|[^\w\s]+, spaces removed

}  // namespace quern::tok
