// SPDX-License-Identifier: Apache-2.0
// What turns the texts of tokens back into the text they came from: a chain of steps over a list
// of strings, joined at the end. Bytes that are not UTF-8 pass through unchanged, where the
// reference writes U+FFFD, so that a stream may be cut anywhere (see Utf8Stream).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tokenizer/pattern.h"

namespace quern::tok {

// Whether the tokens begin a text; what is stripped at the start of a text is kept elsewhere.
enum class TextPlace { kStart, kMiddle };

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void apply(std::vector<std::string>* tokens, TextPlace place) const = 0;
};

using Decoders = std::vector<std::unique_ptr<Decoder>>;

enum class MetaspaceStart { kDropped, kKept };

std::unique_ptr<Decoder> make_byte_level_decoder();
std::unique_ptr<Decoder> make_metaspace_decoder(std::string replacement, MetaspaceStart start);
std::unique_ptr<Decoder> make_byte_fallback_decoder();
std::unique_ptr<Decoder> make_fuse_decoder();
std::unique_ptr<Decoder> make_replace_decoder(Pattern pattern, std::string content);
// Removes up to `start` leading and `stop` trailing `content` (one character) of every string.
std::unique_ptr<Decoder> make_strip_decoder(std::string content, size_t start, size_t stop);

// The byte a token like "<0x0A>" stands for, -1 for other tokens.
int byte_of_token(std::string_view text);

}  // namespace quern::tok
