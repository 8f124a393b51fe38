// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, the format of Hugging Face's `tokenizers`: added_tokens, normalizer,
// pre_tokenizer, model, decoder; of the post_processor only whether it begins with a special token
// is read. Models BPE and Unigram. The ids are those of the reference for every text; what it
// would do otherwise (dropout, WordPiece, word affixes) is refused.
#include <filesystem>

#include "tokenizer/loaders.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/tokenizer_json_steps.h"

namespace quern::tok {
namespace {

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

Status read_vocabulary(const Json& json, Vocabulary* vocabulary) {
  if (!json.is_object()) return error("'vocab' must be an object");
  for (const auto& [text, id] : json.items()) {
    if (!id.is_number_integer()) return error("'vocab': the id of '{}' is no integer", text);
    const bool is_huge = id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX;
    QUERN_TRY(vocabulary->add(text, is_huge ? INT64_MAX : id.get<int64_t>()));
  }
  return {};
}

// "left right" or ["left", "right"]
Result<Merge> read_merge(const Json& json, const Vocabulary& vocabulary) {
  std::string_view left, right;
  if (json.is_string()) {
    const std::string_view both = json.get_ref<const std::string&>();
    const size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
      return error("'{}' is not two tokens", both.substr(0, 64));
    }
    left = both.substr(0, space);
    right = both.substr(space + 1);
  } else if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
    left = json[0].get_ref<const std::string&>();
    right = json[1].get_ref<const std::string&>();
  } else {
    return error("expected \"left right\" or [left, right]");
  }
  const auto left_id = vocabulary.find(left), right_id = vocabulary.find(right);
  if (!left_id || !right_id) {
    return error("'{}' is not a token", (left_id ? right : left).substr(0, 64));
  }
  return Merge{*left_id, *right_id};
}

Result<std::vector<Merge>> read_merges(const Json& json, const Vocabulary& vocabulary) {
  if (!json.is_array()) return error("'merges' must be a list");
  std::vector<Merge> merges;
  merges.reserve(json.size());
  for (const Json& entry : json) {
    auto merge = read_merge(entry, vocabulary);
    if (!merge) {
      return tl::unexpected(
          in_context(std::move(merge).error(), fmt::format("merge {}", merges.size())));
    }
    merges.push_back(*merge);
  }
  return merges;
}

Status refuse_bpe_options(const Json& json) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    QUERN_ASSIGN(const std::string value, json_string_or(json, key, ""));
    if (!value.empty()) return error("'{}' is not supported", key);
  }
  QUERN_ASSIGN(const double dropout, json_number_or(json, "dropout", 0));
  if (dropout != 0) return error("'dropout' is not supported: it makes ids random");
  return {};
}

Status read_bpe(const Json& json, Parts* parts) {
  QUERN_TRY(refuse_bpe_options(json));
  QUERN_TRY(read_vocabulary(member(json, "vocab"), parts->vocabulary.get()));
  RankBpeOptions options;
  QUERN_ASSIGN(const std::string unknown, json_string_or(json, "unk_token", ""));
  options.unknown = parts->vocabulary->find(unknown);
  QUERN_ASSIGN(options.fuse_unknown, json_bool_or(json, "fuse_unk", false));
  QUERN_ASSIGN(options.byte_fallback, json_bool_or(json, "byte_fallback", false));
  QUERN_ASSIGN(options.ignore_merges, json_bool_or(json, "ignore_merges", false));
  QUERN_ASSIGN(const auto merges, read_merges(member(json, "merges"), *parts->vocabulary));
  QUERN_ASSIGN(parts->model, make_rank_bpe(*parts->vocabulary, merges, options));
  if (options.byte_fallback) parts->raw_bytes = RawBytes::kByteTokens;
  return {};
}

Status read_unigram(const Json& json, Parts* parts) {
  const Json& vocab = member(json, "vocab");
  if (!vocab.is_array()) return error("'vocab' must be a list");
  if (vocab.size() > static_cast<size_t>(kMaxVocabulary)) return error("{} tokens", vocab.size());
  std::vector<double> scores;
  for (const Json& entry : vocab) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      return error("'vocab': entry {} is not [token, score]", scores.size());
    }
    QUERN_TRY(parts->vocabulary->add(entry[0].get_ref<const std::string&>(),
                                     static_cast<int64_t>(scores.size())));
    scores.push_back(entry[1].get<double>());
  }
  UnigramOptions options;
  QUERN_ASSIGN(const int64_t unknown, json_int_or(json, "unk_id", 0, kMaxVocabulary, -1));
  if (unknown >= static_cast<int64_t>(scores.size())) {
    return error("'unk_id' {} is not in [0, {})", unknown, scores.size());
  }
  if (unknown >= 0) options.unknown = static_cast<Token>(unknown);
  QUERN_ASSIGN(options.byte_fallback, json_bool_or(json, "byte_fallback", false));
  if (options.byte_fallback) parts->raw_bytes = RawBytes::kByteTokens;
  parts->model = make_unigram(*parts->vocabulary, std::move(scores), {}, options);
  return {};
}

Status read_model(const Json& json, Parts* parts) {
  if (!json.is_object()) return error("'model' must be an object");
  parts->vocabulary = std::make_shared<Vocabulary>(member(json, "vocab").size());
  QUERN_ASSIGN(const std::string type,
               json_string_or(json, "type", json.contains("merges") ? "BPE" : ""));
  if (type == "BPE") return read_bpe(json, parts);
  if (type == "Unigram") return read_unigram(json, parts);
  return error("model '{}' is not supported; known: BPE, Unigram", type);
}

Status read_added_tokens(const Json& json, std::vector<AddedToken>* tokens) {
  if (json.is_null()) return {};
  if (!json.is_array()) return error("'added_tokens' must be a list");
  for (const Json& entry : json) {
    if (!entry.is_object()) return error("'added_tokens': expected objects");
    AddedToken token;
    QUERN_ASSIGN(token.text, json_string(entry, "content"));
    QUERN_ASSIGN(const int64_t id, json_int(entry, "id", 0, kMaxVocabulary - 1));
    token.id = static_cast<Token>(id);
    QUERN_ASSIGN(token.is_special, json_bool_or(entry, "special", false));
    QUERN_ASSIGN(token.is_single_word, json_bool_or(entry, "single_word", false));
    QUERN_ASSIGN(token.strips_left, json_bool_or(entry, "lstrip", false));
    QUERN_ASSIGN(token.strips_right, json_bool_or(entry, "rstrip", false));
    QUERN_ASSIGN(const bool normalized, json_bool_or(entry, "normalized", !token.is_special));
    token.matches = normalized ? MatchedIn::kNormalized : MatchedIn::kInput;
    tokens->push_back(std::move(token));
  }
  return {};
}

// The special token that the post-processor puts in front of a single text, if it does.
std::optional<std::string> leading_token(const Json& json) {
  if (!json.is_object()) return std::nullopt;
  const Json& processors = member(json, "processors");
  if (processors.is_array()) {
    for (const Json& step : processors) {
      if (auto token = leading_token(step)) return token;
    }
  }
  const Json& single = member(json, "single");
  if (!single.is_array() || single.empty() || !single[0].is_object()) return std::nullopt;
  const Json& token = member(single[0], "SpecialToken");
  if (!token.is_object() || !member(token, "id").is_string()) return std::nullopt;
  return member(token, "id").get<std::string>();
}

std::optional<Token> resolve(const Parts& parts, const std::optional<std::string>& text,
                             std::optional<int64_t> id) {
  if (text) {
    for (const AddedToken& token : parts.added) {
      if (token.text == *text) return token.id;
    }
    if (const auto found = parts.vocabulary->find(*text)) return found;
  }
  if (!id) return std::nullopt;
  const auto token = static_cast<Token>(*id);
  if (parts.vocabulary->has(token)) return token;
  for (const AddedToken& added : parts.added) {
    if (added.id == token) return token;
  }
  return std::nullopt;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> parse_tokenizer_json(const Json& json,
                                                        const TokenizerExtras& extras) {
  if (!json.is_object()) return error("expected an object");
  Parts parts;
  parts.no_decoder = NoDecoder::kJoinsWithSpaces;
  QUERN_TRY(read_model(member(json, "model"), &parts));
  QUERN_TRY(read_added_tokens(member(json, "added_tokens"), &parts.added));
  QUERN_ASSIGN(parts.normalizers, parse_normalizers(member(json, "normalizer")));
  QUERN_ASSIGN(parts.pre_tokenizers, parse_pre_tokenizers(member(json, "pre_tokenizer")));
  QUERN_ASSIGN(parts.decoders, parse_decoders(member(json, "decoder")));
  if (has_step(member(json, "pre_tokenizer"), "ByteLevel") ||
      has_step(member(json, "normalizer"), "ByteLevel")) {
    parts.raw_bytes = RawBytes::kByteCharacters;
  }
  const auto leading = leading_token(member(json, "post_processor"));
  parts.bos = resolve(parts, extras.bos ? extras.bos : leading, extras.bos_id);
  parts.eos = resolve(parts, extras.eos, extras.eos_id);
  const bool leads_with_bos = leading && parts.bos && resolve(parts, leading, {}) == parts.bos;
  parts.adds_bos = parts.bos && extras.adds_bos.value_or(leads_with_bos);
  parts.chat_template = extras.chat_template;
  return Pipeline::create(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> open_tokenizer_json(const std::string& path,
                                                       const std::string& directory) {
  QUERN_ASSIGN(const TokenizerExtras extras, read_extras(directory));
  QUERN_ASSIGN(const Json json, read_json_file(path));
  auto tokenizer = parse_tokenizer_json(json, extras);
  if (!tokenizer) {
    const std::string name = std::filesystem::path(path).filename().string();
    return tl::unexpected(in_context(std::move(tokenizer).error(), name));
  }
  return tokenizer;
}

}  // namespace quern::tok
