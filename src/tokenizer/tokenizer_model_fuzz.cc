// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.model, which is also the text to tokenize.
#include <cstddef>
#include <cstdint>

#include "tokenizer/fuzz_checks.h"
#include "tokenizer/loaders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = tok::parse_tokenizer_model(input, {});
  if (!tokenizer) {
    QUERN_CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  tok::check_tokenizer(**tokenizer, tok::kFuzzText);
  tok::check_tokenizer(**tokenizer, input.substr(0, 4096));
  return 0;
}
