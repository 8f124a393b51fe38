// SPDX-License-Identifier: Apache-2.0
// Tokenizers embedded in GGUF files: `llama` (SentencePiece BPE by scores, bytes for what is not
// in the vocabulary) and `gpt2` (byte-level BPE with merges and a named pre-tokenizer).
// Text never becomes a control token by merging, as in SentencePiece.
#include <cmath>
#include <limits>

#include "formats/gguf.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/gguf_pre.h"
#include "tokenizer/loaders.h"
#include "tokenizer/pipeline.h"

namespace quern::tok {
namespace {

enum class TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";

Result<std::vector<TokenType>> read_types(const GgufMetadata& metadata, size_t n_tokens) {
  if (!metadata.has(kTypesKey)) return std::vector<TokenType>(n_tokens, TokenType::kNormal);
  QUERN_ASSIGN(const auto values, metadata.integers(kTypesKey));
  if (values.size() != n_tokens) {
    return error("{}: {} values for {} tokens", kTypesKey, values.size(), n_tokens);
  }
  std::vector<TokenType> types;
  for (const int64_t value : values) types.push_back(static_cast<TokenType>(value));
  return types;
}

Status read_vocabulary(const GgufMetadata& metadata, Parts* parts, std::vector<TokenType>* types) {
  QUERN_ASSIGN(const auto tokens, metadata.strings("tokenizer.ggml.tokens"));
  if (tokens.empty() || tokens.size() > static_cast<size_t>(kMaxVocabulary)) {
    return error("tokenizer.ggml.tokens: {} tokens", tokens.size());
  }
  parts->vocabulary = std::make_shared<Vocabulary>(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    QUERN_TRY(parts->vocabulary->add(tokens[i], static_cast<int64_t>(i)));
  }
  QUERN_ASSIGN(*types, read_types(metadata, tokens.size()));
  return {};
}

// Control, unknown and user-defined tokens are found in the text before the model sees it.
void add_tokens(const std::vector<TokenType>& types, Parts* parts) {
  for (size_t i = 0; i < types.size(); ++i) {
    const bool is_special = types[i] == TokenType::kControl || types[i] == TokenType::kUnknown;
    const std::string_view text = parts->vocabulary->text(static_cast<Token>(i));
    if ((!is_special && types[i] != TokenType::kUserDefined) || text.empty()) continue;
    AddedToken token;
    token.text = std::string(text);
    token.id = static_cast<Token>(i);
    token.is_special = is_special;
    parts->added.push_back(std::move(token));
  }
}

Result<std::optional<Token>> read_id(const GgufMetadata& metadata, std::string_view key,
                                     const Parts& parts, std::optional<Token> fallback) {
  const int64_t n = parts.vocabulary->end_id();
  if (metadata.has(key)) {
    QUERN_ASSIGN(const int64_t id, metadata.integer(key, 0, n - 1));
    return static_cast<Token>(id);
  }
  if (fallback && *fallback >= n) return std::nullopt;
  return fallback;
}

Status read_llama(const GgufMetadata& metadata, const std::vector<TokenType>& types, Parts* parts) {
  ScoredPieces pieces;
  QUERN_ASSIGN(pieces.scores, metadata.floats("tokenizer.ggml.scores"));
  if (pieces.scores.size() != types.size()) {
    return error("tokenizer.ggml.scores: {} values for {} tokens", pieces.scores.size(),
                 types.size());
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (!(std::abs(pieces.scores[i]) <= std::numeric_limits<float>::max())) {
      return error("tokenizer.ggml.scores: the score of token {} is not finite", i);
    }
    const TokenType type = types[i];
    const bool is_reserved =
        type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kByte;
    pieces.kinds.push_back(is_reserved                       ? PieceKind::kReserved
                           : type == TokenType::kUserDefined ? PieceKind::kUserDefined
                           : type == TokenType::kUnused      ? PieceKind::kUnused
                                                             : PieceKind::kNormal);
  }
  ScoreBpeOptions options;
  QUERN_ASSIGN(options.unknown, read_id(metadata, "tokenizer.ggml.unknown_token_id", *parts, 0));
  parts->model = make_score_bpe(*parts->vocabulary, std::move(pieces), options);
  parts->raw_bytes = RawBytes::kByteTokens;
  QUERN_ASSIGN(const bool adds_space, metadata.boolean_or("tokenizer.ggml.add_space_prefix", true));
  if (adds_space) parts->normalizers.push_back(make_prepend(" "));
  parts->normalizers.push_back(make_replace(Pattern::literal(" "), std::string(kMetaspace)));
  parts->decoders.push_back(make_replace_decoder(Pattern::literal(std::string(kMetaspace)), " "));
  parts->decoders.push_back(make_byte_fallback_decoder());
  parts->decoders.push_back(make_fuse_decoder());
  if (adds_space) parts->decoders.push_back(make_strip_decoder(" ", 1, 0));
  QUERN_ASSIGN(parts->bos, read_id(metadata, "tokenizer.ggml.bos_token_id", *parts, 1));
  QUERN_ASSIGN(parts->eos, read_id(metadata, "tokenizer.ggml.eos_token_id", *parts, 2));
  parts->adds_bos = true;
  return {};
}

Result<std::vector<Merge>> read_merges(const GgufMetadata& metadata, const Vocabulary& vocabulary) {
  QUERN_ASSIGN(const auto texts, metadata.strings("tokenizer.ggml.merges"));
  std::vector<Merge> merges;
  merges.reserve(texts.size());
  for (const std::string_view text : texts) {
    // The separator is the first space that is not the first character.
    const size_t space = text.find(' ', 1);
    if (space == std::string_view::npos) {
      return error("tokenizer.ggml.merges: entry {} is not two tokens", merges.size());
    }
    const auto left = vocabulary.find(text.substr(0, space));
    const auto right = vocabulary.find(text.substr(space + 1));
    if (!left || !right) {
      return error("tokenizer.ggml.merges: entry {}: '{}' is not a token", merges.size(),
                   (left ? text.substr(space + 1) : text.substr(0, space)).substr(0, 64));
    }
    merges.push_back({*left, *right});
  }
  return merges;
}

Status read_gpt2(const GgufMetadata& metadata, Parts* parts) {
  QUERN_ASSIGN(const std::string_view name, metadata.string_or("tokenizer.ggml.pre", "default"));
  QUERN_ASSIGN(const GgufPre pre, find_gguf_pre(name));
  for (const std::string_view text : pre.patterns) {
    QUERN_ASSIGN(Pattern pattern, Pattern::regex(text));
    parts->pre_tokenizers.push_back(make_split(std::move(pattern), SplitBehavior::kIsolated));
  }
  QUERN_ASSIGN(const bool adds_space,
               metadata.boolean_or("tokenizer.ggml.add_space_prefix", false));
  if (adds_space) parts->normalizers.push_back(make_prepend(" "));
  parts->pre_tokenizers.push_back(make_byte_level_step());
  parts->decoders.push_back(make_byte_level_decoder());
  parts->raw_bytes = RawBytes::kByteCharacters;
  QUERN_ASSIGN(const auto merges, read_merges(metadata, *parts->vocabulary));
  RankBpeOptions options;
  options.ignore_merges = pre.ignore_merges;
  QUERN_ASSIGN(parts->model, make_rank_bpe(*parts->vocabulary, merges, options));
  // Their texts are plain, where those of the other tokens are written in the byte alphabet.
  for (AddedToken& token : parts->added) token.decoded = to_byte_characters(token.text);
  QUERN_ASSIGN(parts->bos, read_id(metadata, "tokenizer.ggml.bos_token_id", *parts, {}));
  QUERN_ASSIGN(parts->eos, read_id(metadata, "tokenizer.ggml.eos_token_id", *parts, {}));
  parts->adds_bos = pre.adds_bos;
  return {};
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> parse_gguf_tokenizer(const GgufMetadata& metadata) {
  QUERN_ASSIGN(const std::string_view model, metadata.string("tokenizer.ggml.model"));
  if (model != "llama" && model != "gpt2") {
    return error("tokenizer.ggml.model '{}' is not supported; known: llama, gpt2",
                 model.substr(0, 64));
  }
  Parts parts;
  std::vector<TokenType> types;
  QUERN_TRY(read_vocabulary(metadata, &parts, &types));
  add_tokens(types, &parts);
  if (model == "llama") {
    QUERN_TRY(read_llama(metadata, types, &parts));
  } else {
    QUERN_TRY(read_gpt2(metadata, &parts));
  }
  QUERN_ASSIGN(const bool adds_bos,
               metadata.boolean_or("tokenizer.ggml.add_bos_token", parts.adds_bos));
  parts.adds_bos = adds_bos && parts.bos;
  QUERN_ASSIGN(parts.chat_template, metadata.string_or("tokenizer.chat_template", ""));
  return Pipeline::create(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> open_gguf_tokenizer(const std::string& path) {
  QUERN_ASSIGN(const auto file, GgufFile::open(path));
  auto tokenizer = parse_gguf_tokenizer(file->metadata());
  if (!tokenizer) return tl::unexpected(in_context(std::move(tokenizer).error(), path));
  return tokenizer;
}

}  // namespace quern::tok
