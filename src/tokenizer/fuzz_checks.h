// SPDX-License-Identifier: Apache-2.0
// What must hold of any tokenizer that a reader accepted, for any text.
#pragma once

#include <string_view>

#include "base/check.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace quern::tok {

inline void check_tokenizer(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {false, true}) {
    const std::vector<Token> ids = tokenizer.tokenize(text, {.parse_special = parse_special});
    TokenStream stream(tokenizer);
    for (const Token id : ids) {
      QUERN_CHECK(id >= 0 && id < tokenizer.n_vocab());
      QUERN_CHECK(is_valid_utf8(stream.push(id, parse_special)));
    }
    QUERN_CHECK(is_valid_utf8(stream.flush()));
    (void)tokenizer.detokenize(ids, parse_special);
  }
  for (const Token id : {-1, 0, 1, INT32_MAX}) {
    if (const auto found = tokenizer.find(tokenizer.token_text(id))) {
      QUERN_CHECK(*found >= 0 && *found < tokenizer.n_vocab());
    }
  }
  for (const auto& id : {tokenizer.bos(), tokenizer.eos()}) {
    QUERN_CHECK(!id || (*id >= 0 && *id < tokenizer.n_vocab()));
  }
}

// Kinds of text that take different ways through a pipeline.
constexpr std::string_view kFuzzText =
    "  Hello, world! <s>abc 123 \xc3\xa9\xcc\x81\n\n\t\xe2\x96\x81 \xf0\x9f\xa6\x99\xff\xe2\x96 "
    "it's";

}  // namespace quern::tok
