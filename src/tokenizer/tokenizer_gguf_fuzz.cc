// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file with a tokenizer in it.
#include <cstddef>
#include <cstdint>

#include "tokenizer/fuzz_checks.h"
#include "tokenizer/loaders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto file = parse_gguf(std::as_bytes(std::span(data, size)));
  if (!file) return 0;
  const auto tokenizer = tok::parse_gguf_tokenizer(file->metadata);
  if (!tokenizer) {
    QUERN_CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  tok::check_tokenizer(**tokenizer, tok::kFuzzText);
  tok::check_tokenizer(**tokenizer,
                       {reinterpret_cast<const char*>(data), std::min<size_t>(size, 4096)});
  return 0;
}
