// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json, up to the first NUL; what follows it is the text to tokenize.
#include <cstddef>
#include <cstdint>

#include "tokenizer/fuzz_checks.h"
#include "tokenizer/loaders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  const auto json = parse_json(input.substr(0, end), "tokenizer.json");
  if (!json) return 0;
  tok::TokenizerExtras extras;
  extras.bos = "<s>";
  extras.eos_id = 1;
  const auto tokenizer = tok::parse_tokenizer_json(*json, extras);
  if (!tokenizer) {
    QUERN_CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  tok::check_tokenizer(**tokenizer, tok::kFuzzText);
  tok::check_tokenizer(**tokenizer, input.substr(end));
  return 0;
}
