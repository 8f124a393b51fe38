// SPDX-License-Identifier: Apache-2.0
// The named pre-tokenizers of GGUF files (`tokenizer.ggml.pre`): which patterns cut the text of a
// byte-level vocabulary, one after the other, each match a piece of its own.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern::tok {

struct GgufPre {
  std::vector<std::string_view> patterns;
  bool ignore_merges = false;
  bool adds_bos = false;
};

// Unknown names are refused with the list of known ones.
Result<GgufPre> find_gguf_pre(std::string_view name);

}  // namespace quern::tok
