// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pipeline.h"

#include <algorithm>

#include "base/check.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

// Ids of short pieces that were seen before, for the time of one call. Words repeat: on English
// text nine pieces of ten are found here.
class PieceCache {
 public:
  static constexpr size_t kMaxPieceBytes = 64;

  template <class Make>
  void append(std::string_view piece, std::vector<Token>* ids, const Make& make) {
    if (piece.size() > kMaxPieceBytes) {
      make(piece, ids);
      return;
    }
    if (const auto found = spans_.find(piece); found != spans_.end()) {
      const Span span = found->second;
      ids->insert(ids->end(), pool_.begin() + span.begin, pool_.begin() + span.begin + span.size);
      return;
    }
    const size_t before = ids->size();
    make(piece, ids);
    if (spans_.size() >= kMaxEntries) return;
    const Span span{static_cast<uint32_t>(pool_.size()),
                    static_cast<uint32_t>(ids->size() - before)};
    pool_.insert(pool_.end(), ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end());
    spans_.emplace(piece, span);
  }

 private:
  static constexpr size_t kMaxEntries = 65536;
  struct Span {
    uint32_t begin = 0, size = 0;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, Span, Hash, std::equal_to<>> spans_;
  std::vector<Token> pool_;
};

// Models index symbols with 32 bits; longer pieces are cut, which no real text meets.
constexpr size_t kMaxPieceBytes = size_t{1} << 30;

}  // namespace

// One call of tokenize(): its working memory and the ids so far.
class Pipeline::Run {
 public:
  Run(const Pipeline& owner, const TokenizeOptions& options) : owner_(owner), options_(options) {}

  // `text` is valid UTF-8.
  void input(std::string_view text, Origin origin) {
    std::vector<AddedMatch> matches;
    owner_.in_input_.cut(text, options_, &matches);
    for (const AddedMatch& match : matches) {
      if (match.id) {
        ids.push_back(*match.id);
      } else {
        section(text.substr(match.begin, match.end - match.begin),
                match.begin == 0 ? origin : Origin::kSection);
      }
    }
  }

  // Bytes that are not UTF-8.
  void raw(std::string_view bytes) {
    if (owner_.parts_.raw_bytes == RawBytes::kByteCharacters) {
      owner_.parts_.model->tokenize(to_byte_characters(bytes), &ids);
      return;
    }
    for (const char byte : bytes) {
      ids.push_back(*owner_.byte_tokens_[static_cast<unsigned char>(byte)]);
    }
  }

  std::vector<Token> ids;

 private:
  void section(std::string_view text, Origin origin) {
    Section section{std::string(text), origin};
    for (const auto& step : owner_.parts_.normalizers) step->apply(&section, &scratch_);
    if (owner_.in_normalized_.empty()) {
      pieces(std::move(section.text), section.origin);
      return;
    }
    std::vector<AddedMatch> matches;
    owner_.in_normalized_.cut(section.text, options_, &matches);
    for (const AddedMatch& match : matches) {
      if (match.id) {
        ids.push_back(*match.id);
      } else {
        pieces(section.text.substr(match.begin, match.end - match.begin),
               match.begin == 0 ? section.origin : Origin::kSection);
      }
    }
  }

  void pieces(std::string text, Origin origin) {
    if (text.empty()) return;
    const size_t size = text.size();
    Pieces pieces{std::move(text), {{0, size}}, origin};
    for (const auto& step : owner_.parts_.pre_tokenizers) step->apply(&pieces, &scratch_);
    for (const auto& [begin, end] : pieces.ranges) {
      std::string_view piece(pieces.text.data() + begin, end - begin);
      while (piece.size() > kMaxPieceBytes) {
        size_t n = kMaxPieceBytes;
        while ((static_cast<unsigned char>(piece[n]) & 0xc0) == 0x80) --n;
        words(piece.substr(0, n));
        piece.remove_prefix(n);
      }
      words(piece);
    }
  }

  // Cuts before each "▁" that follows something else, where the model allows it.
  void words(std::string_view piece) {
    if (owner_.cuts_at_metaspace_) {
      size_t at = 0;
      while (at < piece.size()) {
        while (piece.substr(at).starts_with(kMetaspace)) at += kMetaspace.size();
        at = piece.find(kMetaspace, at);
        if (at == std::string_view::npos) break;
        word(piece.substr(0, at));
        piece.remove_prefix(at);
        at = 0;
      }
    }
    word(piece);
  }

  void word(std::string_view piece) {
    cache_.append(piece, &ids, [this](std::string_view text, std::vector<Token>* out) {
      owner_.parts_.model->tokenize(text, out);
    });
  }

  const Pipeline& owner_;
  const TokenizeOptions& options_;
  RegexScratch scratch_;
  PieceCache cache_;
};

Result<std::unique_ptr<Tokenizer>> Pipeline::create(Parts parts) {
  QUERN_CHECK(parts.vocabulary != nullptr && parts.model != nullptr);
  std::unique_ptr<Pipeline> pipeline(new Pipeline(std::move(parts)));
  Parts& own = pipeline->parts_;
  pipeline->cuts_at_metaspace_ = own.model->can_cut_before_metaspace();
  pipeline->byte_tokens_ = own.vocabulary->byte_tokens();
  const auto& bytes = pipeline->byte_tokens_;
  if (own.raw_bytes == RawBytes::kByteTokens &&
      !std::all_of(bytes.begin(), bytes.end(), [](const auto& id) { return id.has_value(); })) {
    own.raw_bytes = RawBytes::kReplaced;
  }
  QUERN_TRY(pipeline->index_added());
  for (const auto& id : {own.bos, own.eos}) {
    if (id && (*id < 0 || *id >= pipeline->n_vocab_)) {
      return error("special token {} is not in [0, {})", *id, pipeline->n_vocab_);
    }
  }
  return std::unique_ptr<Tokenizer>(std::move(pipeline));
}

Status Pipeline::index_added() {
  RegexScratch scratch;
  n_vocab_ = parts_.vocabulary->end_id();
  for (size_t i = 0; i < parts_.added.size(); ++i) {
    const AddedToken& token = parts_.added[i];
    const std::string_view shown = std::string_view(token.text).substr(0, 64);
    if (token.text.empty() || token.text.size() > kMaxTokenBytes) {
      return error("added token {}: a text of {} bytes", token.id, token.text.size());
    }
    if (token.id < 0 || token.id >= kMaxVocabulary) {
      return error("added token '{}': id {} is not in [0, {})", shown, token.id, kMaxVocabulary);
    }
    const auto known = parts_.vocabulary->find(token.text);
    if (known ? *known != token.id : parts_.vocabulary->has(token.id)) {
      return error("added token '{}': id {} is not the one of the vocabulary", shown, token.id);
    }
    if (!added_by_id_.emplace(token.id, i).second ||
        !added_by_text_.emplace(token.text, i).second) {
      return error("added token '{}' with id {} is not unique", shown, token.id);
    }
    n_vocab_ = std::max<int64_t>(n_vocab_, int64_t{token.id} + 1);
    if (!token.decoded.empty()) decoded_added_.emplace(token.id, token.decoded);
    if (token.matches != MatchedIn::kNormalized) {
      (token.matches == MatchedIn::kInput ? in_input_ : in_normalized_).add(token, token.text);
      continue;
    }
    Section section{token.text, Origin::kInput};
    for (const auto& step : parts_.normalizers) step->apply(&section, &scratch);
    in_normalized_.add(token, section.text);
    if (section.text != token.text) decoded_added_.emplace(token.id, section.text);
  }
  return {};
}

std::vector<Token> Pipeline::tokenize(std::string_view text, const TokenizeOptions& options) const {
  Run run(*this, options);
  size_t valid = valid_utf8_prefix(text);
  if (valid == text.size()) {
    run.input(text, Origin::kInput);
    return std::move(run.ids);
  }
  if (parts_.raw_bytes == RawBytes::kReplaced) {
    run.input(to_valid_utf8(text), Origin::kInput);
    return std::move(run.ids);
  }
  Origin origin = Origin::kInput;
  for (;;) {
    if (valid > 0) run.input(text.substr(0, valid), origin);
    text.remove_prefix(valid);
    if (text.empty()) return std::move(run.ids);
    origin = Origin::kRawBytes;
    size_t broken = 0;
    do {
      broken += ill_formed_length(text, broken);
    } while (broken < text.size() && decode_utf8(text, broken).length == 0);
    run.raw(text.substr(0, broken));
    text.remove_prefix(broken);
    valid = valid_utf8_prefix(text);
  }
}

std::string Pipeline::detokenize(std::span<const Token> ids, bool with_special) const {
  return decode(ids, with_special, TextPlace::kStart);
}

std::string Pipeline::detokenize_middle(std::span<const Token> ids, bool with_special) const {
  return decode(ids, with_special, TextPlace::kMiddle);
}

std::string Pipeline::decode(std::span<const Token> ids, bool with_special, TextPlace place) const {
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const Token id : ids) {
    if (!with_special && is_special(id)) continue;
    if (const auto normalized = decoded_added_.find(id); normalized != decoded_added_.end()) {
      texts.push_back(normalized->second);
    } else if (added_by_id_.contains(id) || parts_.vocabulary->has(id)) {
      texts.push_back(token_text(id));
    }
  }
  if (texts.empty()) return {};
  for (const auto& step : parts_.decoders) step->apply(&texts, place);
  std::string text;
  const bool with_spaces =
      parts_.decoders.empty() && parts_.no_decoder == NoDecoder::kJoinsWithSpaces;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (with_spaces && (i > 0 || place == TextPlace::kMiddle)) text += ' ';
    text += texts[i];
  }
  return text;
}

std::string Pipeline::token_text(Token id) const {
  if (const auto added = added_by_id_.find(id); added != added_by_id_.end()) {
    return parts_.added[added->second].text;
  }
  return std::string(parts_.vocabulary->text(id));
}

std::optional<Token> Pipeline::find(std::string_view token) const {
  if (const auto added = added_by_text_.find(std::string(token)); added != added_by_text_.end()) {
    return parts_.added[added->second].id;
  }
  return parts_.vocabulary->find(token);
}

bool Pipeline::is_special(Token id) const {
  const auto added = added_by_id_.find(id);
  return added != added_by_id_.end() && parts_.added[added->second].is_special;
}

}  // namespace quern::tok
