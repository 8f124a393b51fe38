// SPDX-License-Identifier: Apache-2.0
// What turns one piece of normalized text into token ids. A model knows nothing of special tokens,
// normalizers or files. Pieces are valid UTF-8; a model is const and may be used by many threads.
//
//   RankBpe    merges with ranks (GPT-2, Llama 3, and SentencePiece BPE converted to merges)
//   ScoreBpe   merges whatever makes the best scored token (SentencePiece BPE as stored)
//   Unigram    the most probable segmentation (Viterbi)
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/tokenizer.h"

namespace quern::tok {

class Vocabulary;

class Model {
 public:
  virtual ~Model() = default;

  // Appends the ids of `piece`.
  virtual void tokenize(std::string_view piece, std::vector<Token>* ids) const = 0;

  // True if no token spans the point before a "▁" that follows something else, so that a text may
  // be cut there without a change of ids. Makes long texts a sequence of words.
  virtual bool can_cut_before_metaspace() const = 0;
};

// "▁", U+2581, stands for a space in SentencePiece vocabularies.
constexpr std::string_view kMetaspace = "\xe2\x96\x81";

// True if `text` has a "▁" right after some other character.
bool has_inner_metaspace(std::string_view text);

struct RankBpeOptions {
  std::optional<Token> unknown;
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;  // a piece that is a token is that token
};

struct Merge {
  Token left = 0, right = 0;
};

// `merges` in order of rank; the text of left + right must be a token. `vocabulary` outlives the
// model.
Result<std::unique_ptr<Model>> make_rank_bpe(const Vocabulary& vocabulary,
                                             const std::vector<Merge>& merges,
                                             const RankBpeOptions& options);

enum class PieceKind : uint8_t {
  kNormal,
  kReserved,  // control, unknown, byte: never made from text
  kUserDefined,
  kUnused,  // an intermediate of merging that is taken apart again at the end
};

struct ScoredPieces {
  std::vector<float> scores;     // by id
  std::vector<PieceKind> kinds;  // by id
};

struct ScoreBpeOptions {
  std::optional<Token> unknown;
  bool byte_fallback = true;
};

std::unique_ptr<Model> make_score_bpe(const Vocabulary& vocabulary, ScoredPieces pieces,
                                      const ScoreBpeOptions& options);

// How sums of scores are rounded; the two references differ, and with them the choice in near ties.
enum class ScorePrecision { kSingle, kDouble };

struct UnigramOptions {
  std::optional<Token> unknown;
  bool byte_fallback = false;
  ScorePrecision precision = ScorePrecision::kDouble;
};

// `scores` and `kinds` by id; `kinds` may be empty: all normal.
std::unique_ptr<Model> make_unigram(const Vocabulary& vocabulary, std::vector<double> scores,
                                    std::vector<PieceKind> kinds, const UnigramOptions& options);

}  // namespace quern::tok
