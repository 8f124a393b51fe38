// SPDX-License-Identifier: Apache-2.0
// Readers of the files that tokenizers come in. Each checks what it reads and assembles a Pipeline.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "formats/gguf.h"
#include "formats/json.h"
#include "tokenizer/tokenizer.h"

namespace quern::tok {

// What stands beside a tokenizer in its directory: tokenizer_config.json, special_tokens_map.json,
// generation_config.json, config.json, chat_template.jinja. All are optional.
struct TokenizerExtras {
  std::optional<std::string> bos, eos;    // as texts
  std::optional<int64_t> bos_id, eos_id;  // as ids, used where the texts are missing
  std::optional<bool> adds_bos;
  std::string chat_template;
};

Result<TokenizerExtras> read_extras(const std::string& directory);

Result<std::unique_ptr<Tokenizer>> open_tokenizer_json(const std::string& path,
                                                       const std::string& directory);
Result<std::unique_ptr<Tokenizer>> parse_tokenizer_json(const Json& json,
                                                        const TokenizerExtras& extras);

Result<std::unique_ptr<Tokenizer>> open_tokenizer_model(const std::string& path,
                                                        const std::string& directory);
Result<std::unique_ptr<Tokenizer>> parse_tokenizer_model(std::string_view bytes,
                                                         const TokenizerExtras& extras);

Result<std::unique_ptr<Tokenizer>> parse_gguf_tokenizer(const GgufMetadata& metadata);
Result<std::unique_ptr<Tokenizer>> open_gguf_tokenizer(const std::string& path);

}  // namespace quern::tok
