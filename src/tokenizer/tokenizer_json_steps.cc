// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer_json_steps.h"

#include <optional>

#include "tokenizer/byte_level.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxGrowth = 1024;  // bytes out per byte in, over all normalizers

tl::unexpected<Error> unknown_type(std::string_view what, std::string_view type,
                                   std::string_view known) {
  return error("{} '{}' is not supported; known: {}", what, type, known);
}

// The members of a Sequence, flattened in order, or the one step itself.
Status flatten(const Json& json, const char* list_key, std::vector<const Json*>* steps) {
  if (json.is_null()) return {};
  QUERN_ASSIGN(const std::string type, json_string(json, "type"));
  if (type != "Sequence") {
    if (steps->size() >= kMaxSteps) return error("more than {} steps", kMaxSteps);
    steps->push_back(&json);
    return {};
  }
  const auto list = json.find(list_key);
  if (list == json.end() || !list->is_array())
    return error("Sequence: '{}' must be a list", list_key);
  for (const Json& step : *list) {
    if (!step.is_object()) return error("Sequence: expected objects in '{}'", list_key);
    QUERN_TRY(flatten(step, list_key, steps));  // as deep as the JSON, at most 64
  }
  return {};
}

struct JsonPattern {
  std::string text;
  bool is_regex = false;
};

// {"String": text} or {"Regex": text}
Result<JsonPattern> parse_pattern(const Json& step) {
  const auto found = step.find("pattern");
  if (found == step.end() || !found->is_object()) return error("'pattern' must be an object");
  JsonPattern pattern;
  pattern.is_regex = found->contains("Regex");
  QUERN_ASSIGN(pattern.text, json_string(*found, pattern.is_regex ? "Regex" : "String"));
  if (pattern.text.empty()) return error("'pattern' must not be empty");
  return pattern;
}

Result<Pattern> compile(const JsonPattern& pattern) {
  if (pattern.is_regex) return Pattern::regex(pattern.text);
  return Pattern::literal(pattern.text);
}

Result<std::string> one_character(const Json& step, const char* key) {
  QUERN_ASSIGN(std::string text, json_string(step, key));
  if (text.empty() || utf8_length(text[0]) != text.size()) {
    return error("'{}' must be one character", key);
  }
  return text;
}

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// With padding, as JSON files carry it.
Result<std::string> from_base64(std::string_view text) {
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3 + 3);
  uint32_t bits = 0;
  int n_bits = 0;
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0) return error("base64: unexpected character");
    bits = bits << 6 | static_cast<uint32_t>(value);
    n_bits += 6;
    if (n_bits < 8) continue;
    n_bits -= 8;
    bytes.push_back(static_cast<char>(bits >> n_bits & 0xff));
  }
  return bytes;
}

struct NormalizerStep {
  std::unique_ptr<Normalizer> step;  // null: nothing to do
  size_t growth = 1;
};

Result<NormalizerStep> parse_replace(const Json& json) {
  QUERN_ASSIGN(const JsonPattern pattern, parse_pattern(json));
  QUERN_ASSIGN(std::string content, json_string(json, "content"));
  const size_t growth =
      pattern.is_regex ? content.size() + 1 : content.size() / pattern.text.size() + 1;
  QUERN_ASSIGN(Pattern compiled, compile(pattern));
  return NormalizerStep{make_replace(std::move(compiled), std::move(content)), growth};
}

Result<NormalizerStep> parse_strip(const Json& json) {
  QUERN_ASSIGN(const bool left, json_bool_or(json, "strip_left", true));
  QUERN_ASSIGN(const bool right, json_bool_or(json, "strip_right", true));
  if (!left && !right) return NormalizerStep{};
  return NormalizerStep{make_strip(left && right ? Ends::kBoth
                                   : left        ? Ends::kLeft
                                                 : Ends::kRight)};
}

Result<NormalizerStep> parse_normalizer(const Json& json) {
  QUERN_ASSIGN(const std::string type, json_string(json, "type"));
  if (type == "NFC") return NormalizerStep{make_normal_form(NormalForm::kNfc), 3};
  if (type == "NFD") return NormalizerStep{make_normal_form(NormalForm::kNfd), 4};
  if (type == "NFKC") return NormalizerStep{make_normal_form(NormalForm::kNfkc), 12};
  if (type == "NFKD") return NormalizerStep{make_normal_form(NormalForm::kNfkd), 12};
  if (type == "Lowercase") return NormalizerStep{make_lowercase(), 2};
  if (type == "StripAccents") return NormalizerStep{make_strip_accents()};
  if (type == "ByteLevel") return NormalizerStep{make_byte_characters(), 2};
  if (type == "Strip") return parse_strip(json);
  if (type == "Replace") return parse_replace(json);
  if (type == "Prepend") {
    QUERN_ASSIGN(std::string prefix, json_string(json, "prepend"));
    if (prefix.size() > kMaxGrowth) return error("Prepend: {} bytes", prefix.size());
    return NormalizerStep{make_prepend(std::move(prefix))};
  }
  if (type == "Precompiled") {
    QUERN_ASSIGN(const std::string text, json_string(json, "precompiled_charsmap"));
    QUERN_ASSIGN(const std::string bytes, from_base64(text));
    QUERN_ASSIGN(auto step, make_charsmap(bytes, CharsmapUnit::kGrapheme));
    return NormalizerStep{std::move(step), 16};
  }
  return unknown_type("normalizer", type,
                      "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, "
                      "Replace, Precompiled, ByteLevel");
}

Result<SplitBehavior> parse_behavior(const Json& json, std::string_view fallback) {
  QUERN_ASSIGN(const std::string name, json_string_or(json, "behavior", fallback));
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return unknown_type("behavior", name,
                      "Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

Result<PrependScheme> parse_scheme(const Json& json) {
  QUERN_ASSIGN(const std::string name, json_string_or(json, "prepend_scheme", "always"));
  QUERN_ASSIGN(const bool adds_prefix, json_bool_or(json, "add_prefix_space", true));
  if (!adds_prefix) {  // the older spelling
    if (json.contains("prepend_scheme") && name != "never") {
      return error("'add_prefix_space' contradicts 'prepend_scheme'");
    }
    return PrependScheme::kNever;
  }
  if (name == "first") return PrependScheme::kFirst;
  if (name == "never") return PrependScheme::kNever;
  if (name == "always") return PrependScheme::kAlways;
  return unknown_type("prepend_scheme", name, "first, never, always");
}

Status parse_byte_level(const Json& json, PreTokenizers* steps) {
  QUERN_ASSIGN(const bool adds_prefix, json_bool_or(json, "add_prefix_space", true));
  QUERN_ASSIGN(const bool uses_regex, json_bool_or(json, "use_regex", true));
  if (adds_prefix) steps->push_back(make_prefix_space());
  if (uses_regex) {
    QUERN_ASSIGN(Pattern pattern, Pattern::regex(kGpt2Pattern));
    steps->push_back(make_split(std::move(pattern), SplitBehavior::kIsolated));
  }
  steps->push_back(make_byte_level_step());
  return {};
}

Status parse_split(const Json& json, PreTokenizers* steps) {
  QUERN_ASSIGN(const JsonPattern pattern, parse_pattern(json));
  QUERN_ASSIGN(const SplitBehavior behavior, parse_behavior(json, ""));
  QUERN_ASSIGN(const bool invert, json_bool_or(json, "invert", false));
  QUERN_ASSIGN(Pattern compiled, compile(pattern));
  steps->push_back(make_split(std::move(compiled), behavior,
                              invert ? SplitSense::kBetweenMatches : SplitSense::kAtMatches));
  return {};
}

Status parse_metaspace(const Json& json, PreTokenizers* steps) {
  MetaspaceOptions options;
  QUERN_ASSIGN(options.replacement, one_character(json, "replacement"));
  QUERN_ASSIGN(options.scheme, parse_scheme(json));
  QUERN_ASSIGN(options.split, json_bool_or(json, "split", true));
  steps->push_back(make_metaspace(options));
  return {};
}

Status parse_pre_tokenizer(const Json& json, PreTokenizers* steps) {
  QUERN_ASSIGN(const std::string type, json_string(json, "type"));
  if (type == "ByteLevel") return parse_byte_level(json, steps);
  if (type == "Split") return parse_split(json, steps);
  if (type == "Metaspace") return parse_metaspace(json, steps);
  if (type == "Whitespace") {
    steps->push_back(make_words());
    return {};
  }
  CharacterTest test = nullptr;
  SplitBehavior behavior = SplitBehavior::kRemoved;
  if (type == "WhitespaceSplit") {
    test = is_whitespace;
  } else if (type == "Digits") {
    QUERN_ASSIGN(const bool individual, json_bool_or(json, "individual_digits", false));
    behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    test = is_numeric;
  } else if (type == "Punctuation") {
    QUERN_ASSIGN(behavior, parse_behavior(json, "Isolated"));
    test = is_punctuation;
  } else {
    return unknown_type("pre_tokenizer", type,
                        "Sequence, ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, "
                        "WhitespaceSplit");
  }
  steps->push_back(make_split(Pattern::characters(test), behavior));
  return {};
}

Result<std::unique_ptr<Decoder>> parse_decoder(const Json& json) {
  QUERN_ASSIGN(const std::string type, json_string(json, "type"));
  if (type == "ByteLevel") return make_byte_level_decoder();
  if (type == "ByteFallback") return make_byte_fallback_decoder();
  if (type == "Fuse") return make_fuse_decoder();
  if (type == "Metaspace") {
    QUERN_ASSIGN(std::string replacement, one_character(json, "replacement"));
    QUERN_ASSIGN(const PrependScheme scheme, parse_scheme(json));
    return make_metaspace_decoder(std::move(replacement), scheme == PrependScheme::kNever
                                                              ? MetaspaceStart::kKept
                                                              : MetaspaceStart::kDropped);
  }
  if (type == "Replace") {
    QUERN_ASSIGN(const JsonPattern pattern, parse_pattern(json));
    QUERN_ASSIGN(std::string content, json_string(json, "content"));
    if (content.size() > kMaxGrowth) return error("Replace: content of {} bytes", content.size());
    QUERN_ASSIGN(Pattern compiled, compile(pattern));
    return make_replace_decoder(std::move(compiled), std::move(content));
  }
  if (type == "Strip") {
    QUERN_ASSIGN(std::string content, one_character(json, "content"));
    QUERN_ASSIGN(const int64_t start, json_int(json, "start", 0, INT32_MAX));
    QUERN_ASSIGN(const int64_t stop, json_int(json, "stop", 0, INT32_MAX));
    return make_strip_decoder(std::move(content), static_cast<size_t>(start),
                              static_cast<size_t>(stop));
  }
  return unknown_type("decoder", type,
                      "Sequence, ByteLevel, Metaspace, ByteFallback, Fuse, Replace, Strip");
}

}  // namespace

Result<Normalizers> parse_normalizers(const Json& json) {
  std::vector<const Json*> list;
  QUERN_TRY(flatten(json, "normalizers", &list));
  Normalizers steps;
  size_t growth = 1;
  for (const Json* step : list) {
    QUERN_ASSIGN(NormalizerStep parsed, parse_normalizer(*step));
    if (parsed.growth > kMaxGrowth || (growth *= parsed.growth) > kMaxGrowth) {
      return error("normalizers may lengthen text more than {} times", kMaxGrowth);
    }
    if (parsed.step) steps.push_back(std::move(parsed.step));
  }
  return steps;
}

Result<PreTokenizers> parse_pre_tokenizers(const Json& json) {
  std::vector<const Json*> list;
  QUERN_TRY(flatten(json, "pretokenizers", &list));
  PreTokenizers steps;
  size_t n_byte_level = 0;
  for (const Json* step : list) {
    n_byte_level += has_step(*step, "ByteLevel") ? 1 : 0;
    if (n_byte_level > 4) return error("more than 4 ByteLevel pre_tokenizers");
    QUERN_TRY(parse_pre_tokenizer(*step, &steps));
  }
  return steps;
}

Result<Decoders> parse_decoders(const Json& json) {
  std::vector<const Json*> list;
  QUERN_TRY(flatten(json, "decoders", &list));
  Decoders steps;
  for (const Json* step : list) {
    QUERN_ASSIGN(auto parsed, parse_decoder(*step));
    steps.push_back(std::move(parsed));
  }
  return steps;
}

bool has_step(const Json& json, std::string_view type) {
  if (!json.is_object()) return false;
  const auto found = json.find("type");
  if (found == json.end() || !found->is_string()) return false;
  if (found->get_ref<const std::string&>() == type) return true;
  for (const char* key : {"normalizers", "pretokenizers", "decoders", "processors"}) {
    const auto list = json.find(key);
    if (list == json.end() || !list->is_array()) continue;
    for (const Json& step : *list) {
      if (has_step(step, type)) return true;
    }
  }
  return false;
}

}  // namespace quern::tok
