// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include "base/file.h"
#include "tokenizer/loaders.h"
#include "tokenizer/vocabulary.h"

namespace quern::tok {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

// The file as JSON, null if it is not there.
Result<Json> read_optional(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return Json();
  QUERN_ASSIGN(Json json, read_json_file(path.string(), kMaxConfigBytes));
  if (!json.is_object()) return error("{}: expected an object", path.filename().string());
  return json;
}

// A token written as "text" or {"content": "text", ...}; nothing if absent or null.
Result<std::optional<std::string>> token_text(const Json& config, const char* key) {
  const auto found = config.is_object() ? config.find(key) : config.end();
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object()) {
    QUERN_ASSIGN(std::string text, json_string(*found, "content"));
    return text;
  }
  return error("'{}': expected a string or an object with 'content'", key);
}

// An id, or the first of a list of ids.
Result<std::optional<int64_t>> token_id(const Json& config, const char* key) {
  const auto found = config.is_object() ? config.find(key) : config.end();
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_array()) {
    if (found->empty()) return std::nullopt;
    if (!found->front().is_number_integer()) return error("'{}': expected integers", key);
    return token_id(Json{{key, found->front()}}, key);
  }
  QUERN_ASSIGN(const int64_t id, json_int(config, key, -1, kMaxVocabulary - 1));
  if (id < 0) return std::nullopt;
  return id;
}

// A template, or the one named "default" of a list of named ones, or else the first.
Result<std::string> read_template(const Json& config) {
  const auto found = config.is_object() ? config.find("chat_template") : config.end();
  if (found == config.end() || found->is_null()) return std::string();
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return error("'chat_template': expected a string or a list");
  std::string chosen;
  for (const Json& entry : *found) {
    if (!entry.is_object()) return error("'chat_template': expected objects in the list");
    QUERN_ASSIGN(const std::string name, json_string(entry, "name"));
    QUERN_ASSIGN(std::string text, json_string(entry, "template"));
    if (name == "default") return text;
    if (chosen.empty()) chosen = std::move(text);
  }
  return chosen;
}

template <class T>
void fill(std::optional<T>* target, std::optional<T> value) {
  if (!target->has_value()) *target = std::move(value);
}

Status read_tokenizer_config(const Json& config, TokenizerExtras* extras) {
  QUERN_ASSIGN(extras->bos, token_text(config, "bos_token"));
  QUERN_ASSIGN(extras->eos, token_text(config, "eos_token"));
  QUERN_ASSIGN(extras->chat_template, read_template(config));
  if (config.is_object() && config.contains("add_bos_token") &&
      !config["add_bos_token"].is_null()) {
    QUERN_ASSIGN(extras->adds_bos, json_bool_or(config, "add_bos_token", false));
  }
  return {};
}

}  // namespace

Result<TokenizerExtras> read_extras(const std::string& directory) {
  namespace fs = std::filesystem;
  const fs::path base = directory;
  TokenizerExtras extras;
  QUERN_ASSIGN(const Json config, read_optional(base / "tokenizer_config.json"));
  if (auto status = read_tokenizer_config(config, &extras); !status) {
    return tl::unexpected(in_context(std::move(status).error(), "tokenizer_config.json"));
  }
  QUERN_ASSIGN(const Json map, read_optional(base / "special_tokens_map.json"));
  for (auto [text, key] : {std::pair(&extras.bos, "bos_token"), {&extras.eos, "eos_token"}}) {
    QUERN_ASSIGN(auto value, token_text(map, key));
    fill(text, std::move(value));
  }
  for (const char* name : {"generation_config.json", "config.json"}) {
    QUERN_ASSIGN(const Json json, read_optional(base / name));
    for (auto [id, key] :
         {std::pair(&extras.bos_id, "bos_token_id"), {&extras.eos_id, "eos_token_id"}}) {
      QUERN_ASSIGN(auto value, token_id(json, key));
      fill(id, value);
    }
  }
  std::error_code ignored;
  if (const fs::path path = base / "chat_template.jinja"; fs::exists(path, ignored)) {
    QUERN_ASSIGN(extras.chat_template, read_file(path.string(), kMaxConfigBytes));
  }
  return extras;
}

}  // namespace quern::tok
