// SPDX-License-Identifier: Apache-2.0
// Unigram segmentation (Kudo, arXiv:1804.10959): of all ways to write a piece as tokens, the one of
// largest sum of scores, by Viterbi over byte positions. A character that is no token by itself may
// be unknown, at a penalty of 10 below the worst score; neighbouring unknowns become one. Cost is
// bytes times the length of the longest token that matches.
#include <algorithm>
#include <limits>

#include "tokenizer/model.h"
#include "tokenizer/trie.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace quern::tok {
namespace {

constexpr double kUnknownPenalty = 10.0;

class Unigram final : public Model {
 public:
  Unigram(const Vocabulary& vocabulary, std::vector<double> scores, std::vector<PieceKind> kinds,
          const UnigramOptions& options)
      : vocabulary_(vocabulary),
        scores_(std::move(scores)),
        options_(options),
        byte_tokens_(vocabulary.byte_tokens()),
        has_kinds_(!kinds.empty()) {
    const bool is_single = options.precision == ScorePrecision::kSingle;
    double least = std::numeric_limits<double>::infinity(), most = -least;
    for (size_t id = 0; id < scores_.size(); ++id) {
      if (!kinds.empty() && kinds[id] != PieceKind::kNormal) continue;
      if (!vocabulary.has(static_cast<Token>(id))) continue;
      least = std::min(least, scores_[id]);
      most = std::max(most, scores_[id]);
    }
    if (scores_.empty() || least > most) least = most = 0;
    unknown_score_ = least - kUnknownPenalty;
    if (is_single) unknown_score_ = static_cast<float>(unknown_score_);
    for (size_t id = 0; id < scores_.size(); ++id) {
      const PieceKind kind = kinds.empty() ? PieceKind::kNormal : kinds[id];
      if (kind == PieceKind::kReserved || kind == PieceKind::kUnused) continue;
      const std::string_view text = vocabulary.text(static_cast<Token>(id));
      if (kind == PieceKind::kUserDefined) {
        const double length = static_cast<double>(text.size());
        scores_[id] = (is_single ? static_cast<float>(length * most) : length * most) - 0.1;
      }
      trie_.add(text, static_cast<uint32_t>(id));
    }
  }

  bool can_cut_before_metaspace() const override { return false; }

  void tokenize(std::string_view piece, std::vector<Token>* ids) const override {
    const std::vector<Node> nodes = best_paths(piece);
    std::vector<std::pair<uint32_t, uint32_t>> parts;  // ends and starts, from the last
    for (auto end = static_cast<uint32_t>(piece.size()); end > 0; end = nodes[end].start) {
      parts.emplace_back(nodes[end].start, end);
    }
    for (size_t i = parts.size(); i-- > 0;) {
      const auto [start, end] = parts[i];
      if (nodes[end].id >= 0) {
        ids->push_back(nodes[end].id);
        continue;
      }
      uint32_t run_end = end;  // the run of unknown characters
      while (i > 0 && nodes[parts[i - 1].second].id < 0) run_end = parts[--i].second;
      emit_unknown(piece.substr(start, run_end - start), ids);
    }
  }

 private:
  struct Node {
    double score = 0;
    Token id = -1;  // -1: unknown
    uint32_t start = UINT32_MAX;
  };

  double rounded(double score) const {
    return options_.precision == ScorePrecision::kSingle ? static_cast<float>(score) : score;
  }

  // For every byte position the last token of the best way to get there.
  std::vector<Node> best_paths(std::string_view piece) const {
    std::vector<Node> nodes(piece.size() + 1);
    const auto offer = [&](size_t start, size_t end, Token id, double score) {
      Node& node = nodes[end];
      if (node.start != UINT32_MAX && !(score > node.score)) return;
      node = {rounded(score), id, static_cast<uint32_t>(start)};
    };
    for (size_t at = 0, n = 0; at < piece.size(); at += n) {
      n = utf8_length(piece[at]);
      bool has_single = false;
      const double before = nodes[at].score;
      trie_.prefixes(piece.substr(at), [&](size_t length, uint32_t id) {
        const bool is_unknown = options_.unknown && *options_.unknown == static_cast<Token>(id);
        offer(at, at + length, is_unknown ? -1 : static_cast<Token>(id), before + scores_[id]);
        has_single = has_single || length == n;
      });
      if (!has_single) offer(at, at + n, -1, before + unknown_score_);
    }
    return nodes;
  }

  void emit_unknown(std::string_view text, std::vector<Token>* ids) const {
    // Without kinds the unknown token's own text ("<unk>") may be written in the piece.
    if (const auto id = has_kinds_ ? std::nullopt : vocabulary_.find(text)) {
      ids->push_back(*id);
      return;
    }
    const bool has_bytes = std::all_of(text.begin(), text.end(), [this](char c) {
      return byte_tokens_[static_cast<unsigned char>(c)].has_value();
    });
    if (options_.byte_fallback && has_bytes) {
      for (const char c : text) ids->push_back(*byte_tokens_[static_cast<unsigned char>(c)]);
    } else if (options_.unknown) {
      ids->push_back(*options_.unknown);
    }
  }

  const Vocabulary& vocabulary_;
  std::vector<double> scores_;
  UnigramOptions options_;
  std::vector<std::optional<Token>> byte_tokens_;
  bool has_kinds_ = false;
  double unknown_score_ = 0;
  Trie trie_;
};

}  // namespace

std::unique_ptr<Model> make_unigram(const Vocabulary& vocabulary, std::vector<double> scores,
                                    std::vector<PieceKind> kinds, const UnigramOptions& options) {
  const auto n = static_cast<size_t>(vocabulary.end_id());
  scores.resize(n, 0.0);
  if (!kinds.empty()) kinds.resize(n, PieceKind::kNormal);
  return std::make_unique<Unigram>(vocabulary, std::move(scores), std::move(kinds), options);
}

}  // namespace quern::tok
