// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding by rank (Sennrich et al., arXiv:1508.07909). A piece starts as characters;
// the adjacent pair of lowest rank (leftmost among equals) is merged until no pair has a rank.
// Symbols form a linked list in an array and candidate pairs wait in a heap, so that n characters
// cost O(n log n) whatever they are. An entry of the heap is stale when its pair has changed; it is
// still honoured if the new pair makes the same token, as in the reference.
#include <algorithm>

#include "tokenizer/flat_map.h"
#include "tokenizer/model.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace quern::tok {

bool has_inner_metaspace(std::string_view text) {
  for (size_t at = text.find(kMetaspace, 1); at != std::string_view::npos;
       at = text.find(kMetaspace, at + 1)) {
    if (at < kMetaspace.size() || text.substr(at - kMetaspace.size(), 3) != kMetaspace) return true;
  }
  return false;
}

namespace {

struct Symbol {
  Token id = 0;
  int32_t previous = -1, next = -1;
  bool is_alive = true;
};

struct Candidate {
  uint32_t rank = 0;
  int32_t at = 0;
  Token merged = 0;
};

struct IsWorse {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  }
};

uint64_t pair_key(Token left, Token right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

class RankBpe final : public Model {
 public:
  RankBpe(const Vocabulary& vocabulary, const RankBpeOptions& options)
      : vocabulary_(vocabulary), options_(options), byte_tokens_(vocabulary.byte_tokens()) {
    can_cut_ = vocabulary.find(kMetaspace).has_value();
  }

  Status add_merge(uint32_t rank, const Merge& merge) {
    std::string text(vocabulary_.text(merge.left));
    text += vocabulary_.text(merge.right);
    const std::optional<Token> merged = vocabulary_.find(text);
    if (!merged) {
      return error("merge {}: its result '{}' is not a token", rank, text.substr(0, 64));
    }
    const uint64_t value = static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(*merged);
    merges_.insert(pair_key(merge.left, merge.right), value) = value;
    if (has_inner_metaspace(text)) can_cut_ = false;
    return {};
  }

  bool can_cut_before_metaspace() const override { return can_cut_ && !options_.ignore_merges; }

  void tokenize(std::string_view piece, std::vector<Token>* ids) const override {
    if (piece.empty()) return;
    if (options_.ignore_merges) {
      if (const auto whole = vocabulary_.find(piece)) {
        ids->push_back(*whole);
        return;
      }
    }
    std::vector<Symbol> symbols = first_symbols(piece);
    merge_all(&symbols);
    for (const Symbol& symbol : symbols) {
      if (symbol.is_alive) ids->push_back(symbol.id);
    }
  }

 private:
  std::vector<Symbol> first_symbols(std::string_view piece) const {
    std::vector<Symbol> symbols;
    symbols.reserve(piece.size());
    const auto add = [&symbols](Token id) {
      const auto at = static_cast<int32_t>(symbols.size());
      if (at > 0) symbols.back().next = at;
      symbols.push_back({id, at - 1, -1, true});
    };
    bool is_unknown_due = false;  // written when the next known character is, or at the end
    for (size_t at = 0, n = 0; at < piece.size(); at += n) {
      n = utf8_length(piece[at]);
      const std::string_view c = piece.substr(at, n);
      if (const auto id = vocabulary_.find(c)) {
        if (is_unknown_due) add(*options_.unknown);
        is_unknown_due = false;
        add(*id);
      } else if (options_.byte_fallback && has_bytes(c)) {
        for (const char byte : c) add(*byte_tokens_[static_cast<unsigned char>(byte)]);
      } else if (options_.unknown) {
        if (is_unknown_due && !options_.fuse_unknown) add(*options_.unknown);
        is_unknown_due = true;
      }
    }
    if (is_unknown_due) add(*options_.unknown);
    return symbols;
  }

  bool has_bytes(std::string_view c) const {
    return std::all_of(c.begin(), c.end(), [this](char byte) {
      return byte_tokens_[static_cast<unsigned char>(byte)].has_value();
    });
  }

  void push(const std::vector<Symbol>& symbols, int32_t at, std::vector<Candidate>* heap) const {
    const Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.next < 0) return;
    const Token right = symbols[static_cast<size_t>(left.next)].id;
    const uint64_t* merge = merges_.find(pair_key(left.id, right));
    if (merge == nullptr) return;
    heap->push_back({static_cast<uint32_t>(*merge >> 32), at, static_cast<Token>(*merge)});
  }

  void merge_all(std::vector<Symbol>* list) const {
    std::vector<Symbol>& symbols = *list;
    std::vector<Candidate> heap;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) push(symbols, static_cast<int32_t>(i), &heap);
    std::make_heap(heap.begin(), heap.end(), IsWorse());
    const auto push_heap = [&](int32_t at) {
      const size_t before = heap.size();
      push(symbols, at, &heap);
      if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), IsWorse());
    };
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), IsWorse());
      const Candidate best = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(best.at)];
      if (!left.is_alive || left.next < 0) continue;
      Symbol& right = symbols[static_cast<size_t>(left.next)];
      const uint64_t* merge = merges_.find(pair_key(left.id, right.id));
      if (merge == nullptr || static_cast<Token>(*merge) != best.merged) continue;
      left.id = best.merged;
      left.next = right.next;
      right.is_alive = false;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.at;
      if (left.previous >= 0) push_heap(left.previous);
      push_heap(best.at);
    }
  }

  const Vocabulary& vocabulary_;
  RankBpeOptions options_;
  std::vector<std::optional<Token>> byte_tokens_;
  FlatMap merges_;  // (left, right) -> rank << 32 | merged
  bool can_cut_ = false;
};

}  // namespace

Result<std::unique_ptr<Model>> make_rank_bpe(const Vocabulary& vocabulary,
                                             const std::vector<Merge>& merges,
                                             const RankBpeOptions& options) {
  auto model = std::make_unique<RankBpe>(vocabulary, options);
  for (size_t i = 0; i < merges.size(); ++i) {
    QUERN_TRY(model->add_merge(static_cast<uint32_t>(i), merges[i]));
  }
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace quern::tok
