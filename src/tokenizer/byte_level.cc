// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/byte_level.h"

#include <array>

#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

constexpr bool shows_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr std::array<uint16_t, 256> make_codes() {
  std::array<uint16_t, 256> codes{};
  uint16_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    codes[byte] = shows_itself(byte) ? static_cast<uint16_t>(byte) : next++;
  }
  return codes;
}

constexpr std::array<uint16_t, 256> kCodes = make_codes();
constexpr uint32_t kEndCode = 256 + 68;  // 68 bytes do not show themselves

constexpr std::array<int16_t, kEndCode> make_bytes() {
  std::array<int16_t, kEndCode> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (unsigned byte = 0; byte < 256; ++byte) bytes[kCodes[byte]] = static_cast<int16_t>(byte);
  return bytes;
}

constexpr std::array<int16_t, kEndCode> kBytes = make_bytes();

}  // namespace

const char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string to_byte_characters(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 4);
  for (const char c : bytes) append_utf8(&text, kCodes[static_cast<unsigned char>(c)]);
  return text;
}

std::optional<std::string> from_byte_characters(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text, at);
    if (c.length == 0 || c.code >= kEndCode || kBytes[c.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kBytes[c.code]));
    at += c.length;
  }
  return bytes;
}

}  // namespace quern::tok
