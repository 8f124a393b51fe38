// SPDX-License-Identifier: Apache-2.0
// GPT-2's alphabet: each of the 256 bytes has a printable character that stands for it in
// vocabularies ("Ġ" is the space). Printable Latin-1 stands for itself, the others for U+0100 on.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quern::tok {

// The characters of the bytes of `bytes`; any bytes will do.
std::string to_byte_characters(std::string_view bytes);

// The bytes that `text` shows; nothing if some character shows no byte.
std::optional<std::string> from_byte_characters(std::string_view text);

// The pattern GPT-2 cuts text with.
extern const char kGpt2Pattern[];

}  // namespace quern::tok
