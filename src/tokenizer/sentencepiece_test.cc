// SPDX-License-Identifier: Apache-2.0
// tokenizer.model beyond the fixtures: pieces of every type, and files that are refused.
#include <gtest/gtest.h>

#include <cstring>

#include "base/file.h"
#include "tokenizer/loaders.h"

namespace quern::tok {
namespace {

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value > 127; value >>= 7) bytes.push_back(static_cast<char>(value | 128));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::string field(uint32_t number, const std::string& bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}

std::string field(uint32_t number, uint64_t value) { return varint(number << 3) + varint(value); }

enum Type : uint64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

std::string piece(const std::string& text, float score, uint64_t type) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  return field(1, field(1, text) + varint(2 << 3 | 5) + bits + field(3, type));
}

std::string pieces() {
  return piece("<unk>", 0, kUnknown) + piece("<s>", 0, kControl) + piece("</s>", 0, kControl) +
         piece("▁", -1, kNormal) + piece("a", -2, kNormal) + piece("b", -3, kNormal) +
         piece("ab", -1, kUnused) + piece("abb", -1.5f, kNormal) + piece("[X]", 0, kUserDefined);
}

const std::string kBpe =
    field(2, field(3, uint64_t{2})) + field(3, field(3, uint64_t{1}) + field(4, uint64_t{0}));

std::string refusal(const std::string& bytes) {
  const auto tokenizer = parse_tokenizer_model(bytes, {});
  return tokenizer ? "" : tokenizer.error().message;
}

TEST(SentencePiece, TakesUnusedPiecesApart) {
  const auto tokenizer = parse_tokenizer_model(pieces() + kBpe, {});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.tokenize("ab"), (std::vector<Token>{3, 4, 5}));
  EXPECT_EQ(t.tokenize("abb"), (std::vector<Token>{3, 7}));
  EXPECT_EQ(t.tokenize("a[X]b"), (std::vector<Token>{3, 4, 8, 5}));
  EXPECT_EQ(t.tokenize("zzza"), (std::vector<Token>{3, 0, 4}));  // unknowns in a row are one
  EXPECT_EQ(t.bos(), 1);
  EXPECT_EQ(t.eos(), 2);
  EXPECT_TRUE(t.adds_bos());
}

TEST(SentencePiece, ControlPiecesAreTextUnlessParsed) {
  const auto tokenizer = parse_tokenizer_model(pieces() + kBpe, {});
  ASSERT_TRUE(tokenizer);
  for (const Token id : (*tokenizer)->tokenize("<s>a")) EXPECT_NE(id, 1);
  EXPECT_EQ((*tokenizer)->tokenize("<s>a", {.parse_special = true}), (std::vector<Token>{1, 3, 4}));
}

TEST(SentencePiece, RefusesWhatIsMalformed) {
  const auto expect = [](const std::string& bytes, const std::string& reason) {
    EXPECT_NE(refusal(bytes).find(reason), std::string::npos) << refusal(bytes);
  };
  expect("", "no pieces");
  expect(pieces() + field(2, field(3, uint64_t{4})), "model type 4");
  expect(pieces() + pieces() + kBpe, "'<unk>' has the ids 0 and 9");
  expect(piece("a", std::numeric_limits<float>::quiet_NaN(), kNormal), "not finite");
  expect(piece("a", 0, 7), "type 7");
  expect(piece("\xff", 0, kNormal), "UTF-8");
  expect(field(1, field(1, uint64_t{3})), "wire type 0, expected 2");
  expect(pieces() + field(3, field(2, std::string("\1\0\0\0xyz", 7))), "charsmap");
  expect(pieces() + field(3, field(5, uint64_t{0})), "escape_whitespaces");
  expect(std::string(11, '\xff'), "longer than 10 bytes");
}

TEST(SentencePiece, AnyBeginningOfAFileIsAnswered) {
  const auto file = read_file(QUERN_SOURCE_DIR "/tests/data/tokenizers/spm_bpe/tokenizer.model");
  ASSERT_TRUE(file);
  for (size_t n = 0; n < file->size(); n += 7) {
    const auto tokenizer = parse_tokenizer_model(std::string_view(*file).substr(0, n), {});
    if (!tokenizer) {
      EXPECT_FALSE(tokenizer.error().message.empty());
    }
  }
}

}  // namespace
}  // namespace quern::tok
