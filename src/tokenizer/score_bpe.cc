// SPDX-License-Identifier: Apache-2.0
// SentencePiece's BPE: of all adjacent pairs whose text is a token, the one of best score
// (leftmost among equals) is merged until none is left. The same heap over a linked list as
// rank_bpe.cc, but symbols are stretches of the text, since a token may come from several pairs.
// A token of kind `unused` may be merged through but is taken apart again into what made it.
#include <algorithm>
#include <unordered_map>

#include "tokenizer/model.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace quern::tok {
namespace {

struct Symbol {
  int32_t previous = -1, next = -1;
  uint32_t begin = 0, length = 0;  // length 0: merged into another
};

struct Candidate {
  float score = 0;
  int32_t left = 0;
  uint32_t length = 0;  // of the merged text; another length means that the entry is stale
};

struct IsWorse {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.score != b.score ? a.score < b.score : a.left > b.left;
  }
};

// Where the text of an unused token was put together: its first part's length.
using Seams = std::unordered_map<std::string_view, uint32_t>;

class ScoreBpe final : public Model {
 public:
  ScoreBpe(const Vocabulary& vocabulary, ScoredPieces pieces, const ScoreBpeOptions& options)
      : vocabulary_(vocabulary),
        pieces_(std::move(pieces)),
        options_(options),
        byte_tokens_(vocabulary.byte_tokens()) {
    can_cut_ = is_mergeable(kMetaspace).has_value();
    for (int64_t id = 0; id < vocabulary.end_id() && can_cut_; ++id) {
      can_cut_ = !has_inner_metaspace(vocabulary.text(static_cast<Token>(id)));
    }
  }

  bool can_cut_before_metaspace() const override { return can_cut_; }

  void tokenize(std::string_view piece, std::vector<Token>* ids) const override {
    std::vector<Symbol> symbols;
    symbols.reserve(piece.size());
    for (size_t at = 0; at < piece.size();) {
      const size_t n = utf8_length(piece[at]);
      const auto i = static_cast<int32_t>(symbols.size());
      symbols.push_back({i - 1, i + 1, static_cast<uint32_t>(at), static_cast<uint32_t>(n)});
      at += n;
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;
    Seams seams;
    merge_all(piece, &symbols, &seams);
    bool after_unknown = false;
    for (const Symbol& symbol : symbols) {
      if (symbol.length == 0) continue;
      emit(piece.substr(symbol.begin, symbol.length), seams, &after_unknown, ids);
    }
  }

 private:
  std::optional<Token> is_mergeable(std::string_view text) const {
    if (text.size() > vocabulary_.longest()) return std::nullopt;
    const auto id = vocabulary_.find(text);
    if (!id || kind(*id) == PieceKind::kReserved) return std::nullopt;
    return id;
  }
  PieceKind kind(Token id) const { return pieces_.kinds[static_cast<size_t>(id)]; }

  // Considers merging `left` with what follows it.
  bool push(std::string_view piece, const std::vector<Symbol>& symbols, int32_t left, Seams* seams,
            std::vector<Candidate>* heap) const {
    const Symbol& a = symbols[static_cast<size_t>(left)];
    if (a.next < 0) return false;
    const Symbol& b = symbols[static_cast<size_t>(a.next)];
    const std::string_view text = piece.substr(a.begin, size_t{a.length} + b.length);
    const auto id = is_mergeable(text);
    if (!id) return false;
    heap->push_back({pieces_.scores[static_cast<size_t>(*id)], left, a.length + b.length});
    if (kind(*id) == PieceKind::kUnused) (*seams)[text] = a.length;
    return true;
  }

  void merge_all(std::string_view piece, std::vector<Symbol>* list, Seams* seams) const {
    std::vector<Symbol>& symbols = *list;
    std::vector<Candidate> heap;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      push(piece, symbols, static_cast<int32_t>(i), seams, &heap);
    }
    std::make_heap(heap.begin(), heap.end(), IsWorse());
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), IsWorse());
      const Candidate best = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(best.left)];
      if (left.length == 0 || left.next < 0) continue;
      Symbol& right = symbols[static_cast<size_t>(left.next)];
      if (left.length + right.length != best.length) continue;
      left.length += right.length;
      left.next = right.next;
      right.length = 0;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
      for (const int32_t at : {left.previous, best.left}) {
        if (at >= 0 && push(piece, symbols, at, seams, &heap)) {
          std::push_heap(heap.begin(), heap.end(), IsWorse());
        }
      }
    }
  }

  void emit(std::string_view text, const Seams& seams, bool* after_unknown,
            std::vector<Token>* ids) const {
    std::vector<std::string_view> todo = {text};
    while (!todo.empty()) {
      text = todo.back();
      todo.pop_back();
      const auto id = is_mergeable(text);
      const auto seam = id && kind(*id) == PieceKind::kUnused ? seams.find(text) : seams.end();
      if (seam != seams.end()) {
        todo.push_back(text.substr(seam->second));
        todo.push_back(text.substr(0, seam->second));
        continue;
      }
      if (id) {
        ids->push_back(*id);
      } else {
        emit_unknown(text, *after_unknown, ids);
      }
      *after_unknown = !id;
    }
  }

  void emit_unknown(std::string_view text, bool after_unknown, std::vector<Token>* ids) const {
    if (options_.byte_fallback) {
      for (const char c : text) {
        const auto id = byte_tokens_[static_cast<unsigned char>(c)];
        if (id) ids->push_back(*id);
        if (!id && options_.unknown) ids->push_back(*options_.unknown);
      }
    } else if (options_.unknown && !after_unknown) {
      ids->push_back(*options_.unknown);
    }
  }

  const Vocabulary& vocabulary_;
  ScoredPieces pieces_;
  ScoreBpeOptions options_;
  std::vector<std::optional<Token>> byte_tokens_;
  bool can_cut_ = false;
};

}  // namespace

std::unique_ptr<Model> make_score_bpe(const Vocabulary& vocabulary, ScoredPieces pieces,
                                      const ScoreBpeOptions& options) {
  const auto n = static_cast<size_t>(vocabulary.end_id());
  pieces.scores.resize(n, 0.0f);
  pieces.kinds.resize(n, PieceKind::kNormal);
  return std::make_unique<ScoreBpe>(vocabulary, std::move(pieces), options);
}

}  // namespace quern::tok
