// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/utf8.h"

#include <utf8proc.h>

namespace quern::tok {
namespace {

unsigned byte_at(std::string_view text, size_t at) { return static_cast<unsigned char>(text[at]); }

// Range of the second byte after each lead byte, which is where overlong forms, surrogates and
// codes past U+10FFFF show.
struct SecondByte {
  unsigned low = 0x80, high = 0xbf;
};

SecondByte second_byte(unsigned lead) {
  switch (lead) {
    case 0xe0:
      return {0xa0, 0xbf};
    case 0xed:
      return {0x80, 0x9f};
    case 0xf0:
      return {0x90, 0xbf};
    case 0xf4:
      return {0x80, 0x8f};
    default:
      return {};
  }
}

// Bytes promised by a lead byte, 0 for one that cannot lead.
unsigned promised_length(unsigned lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

// Bytes from `at` that a well-formed character could begin with.
unsigned well_formed_bytes(std::string_view text, size_t at, unsigned promised) {
  const SecondByte second = second_byte(byte_at(text, at));
  unsigned n = 1;
  while (n < promised && at + n < text.size()) {
    const unsigned byte = byte_at(text, at + n);
    if (n == 1 ? byte < second.low || byte > second.high : (byte & 0xc0) != 0x80) break;
    ++n;
  }
  return n;
}

utf8proc_category_t category(uint32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

}  // namespace

Utf8Char decode_utf8(std::string_view text, size_t at) {
  const unsigned lead = byte_at(text, at);
  if (lead < 0x80) return {lead, 1};
  const unsigned length = promised_length(lead);
  if (length == 0 || well_formed_bytes(text, at, length) != length) return {};
  uint32_t code = lead & (0x7fu >> length);
  for (unsigned i = 1; i < length; ++i) code = code << 6 | (byte_at(text, at + i) & 0x3f);
  return {code, length};
}

void append_utf8(std::string* text, uint32_t code) {
  const auto put = [text](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Char c = decode_utf8(text, at);
    if (c.length == 0) break;
    at += c.length;
  }
  return at;
}

size_t ill_formed_length(std::string_view text, size_t at) {
  const unsigned promised = promised_length(byte_at(text, at));
  return promised == 0 ? 1 : well_formed_bytes(text, at, promised);
}

std::string to_valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t n = valid_utf8_prefix(text);
    valid.append(text.substr(0, n));
    text.remove_prefix(n);
    if (text.empty()) break;
    valid += "\xef\xbf\xbd";
    text.remove_prefix(ill_formed_length(text, 0));
  }
  return valid;
}

bool is_whitespace(uint32_t code) {
  if (code <= 0x20) return code == 0x20 || (code >= 9 && code <= 13);
  if (code < 0x85) return false;
  if (code == 0x85) return true;
  const utf8proc_category_t c = category(code);
  return c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP;
}

bool is_numeric(uint32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  const utf8proc_category_t c = category(code);
  return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(uint32_t code) {
  if (code < 0x80) {
    return (code >= '!' && code <= '/') || (code >= ':' && code <= '@') ||
           (code >= '[' && code <= '`') || (code >= '{' && code <= '~');
  }
  const utf8proc_category_t c = category(code);
  return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(uint32_t code) {
  const utf8proc_category_t c = category(code);
  return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

bool is_word(uint32_t code) {
  const utf8proc_category_t c = category(code);
  if (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) return true;  // L*, M*, Nd, Nl
  if (c == UTF8PROC_CATEGORY_PC) return true;
  // Other_Alphabetic symbols and the two joiners.
  return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9) ||
         (code >= 0x1f130 && code <= 0x1f149) || (code >= 0x1f150 && code <= 0x1f169) ||
         (code >= 0x1f170 && code <= 0x1f189);
}

}  // namespace quern::tok
