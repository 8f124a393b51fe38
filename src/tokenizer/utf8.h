// SPDX-License-Identifier: Apache-2.0
// UTF-8 and the few character properties that tokenizers ask about.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quern::tok {

struct Utf8Char {
  uint32_t code = 0;
  uint32_t length = 0;  // bytes; 0 where the text has no well-formed character
};

// The character at `at`: shortest form, no surrogates, at most U+10FFFF. `at` < text.size().
Utf8Char decode_utf8(std::string_view text, size_t at);

// Length of the character whose first byte this is, in text known to be valid.
inline size_t utf8_length(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

void append_utf8(std::string* text, uint32_t code);

// Bytes of `text` before its first malformed one.
size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

// U+FFFD in place of each maximal ill-formed subsequence (Unicode 15, section 3.9).
std::string to_valid_utf8(std::string_view text);

// Bytes of the ill-formed subsequence at `at`, at least 1.
size_t ill_formed_length(std::string_view text, size_t at);

bool is_whitespace(uint32_t code);   // White_Space
bool is_numeric(uint32_t code);      // Nd, Nl, No
bool is_punctuation(uint32_t code);  // P*, and every ASCII punctuation mark
bool is_mark(uint32_t code);         // M*
bool is_word(uint32_t code);         // what \w means in the reference

}  // namespace quern::tok
