// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>

#include "base/random.h"
#include "formats/json.h"
#include "tokenizer/utf8.h"

namespace quern {
namespace {

const std::string kFixtures = QUERN_SOURCE_DIR "/tests/data/tokenizers/";
const std::string kReplacement = "\xef\xbf\xbd";

std::unique_ptr<Tokenizer> open_fixture(const std::string& name) {
  auto tokenizer = Tokenizer::open(kFixtures + name);
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

std::string random_utf8(Random& random, size_t n) {
  static constexpr uint32_t kEnds[] = {0x80, 0x800, 0xd800, 0x3100, 0x2020, 0x110000};
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    const auto code = static_cast<uint32_t>(random.below(kEnds[random.below(6)]));
    tok::append_utf8(&text, code >= 0xd800 && code < 0xe000 ? ' ' : code);
  }
  return text;
}

std::string random_bytes(Random& random, size_t n) {
  std::string text;
  for (size_t i = 0; i < n; ++i) text.push_back(static_cast<char>(random.below(256)));
  return text;
}

TEST(Tokenizer, TinyModelGivesItsGoldenIds) {
  const std::string directory = QUERN_SOURCE_DIR "/models/tiny";
  const auto tokenizer = Tokenizer::open(directory);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto golden = read_json_file(directory + "/golden.json");
  ASSERT_TRUE(golden);
  auto expected = (*golden)["ids"].get<std::vector<Token>>();
  const auto prompt = (*golden)["prompt"].get<std::string>();
  ASSERT_EQ((*tokenizer)->bos(), expected.front());
  EXPECT_EQ((*tokenizer)->eos(), 1);
  EXPECT_FALSE((*tokenizer)->adds_bos());
  expected.erase(expected.begin());
  EXPECT_EQ((*tokenizer)->tokenize(prompt), expected);
  EXPECT_EQ((*tokenizer)->detokenize(expected), prompt);
  EXPECT_EQ((*tokenizer)->n_vocab(), 4096);
}

TEST(Tokenizer, BeginningTokenOfTheTemplateIsAdded) {
  const auto tokenizer = open_fixture("byte_level_llama3");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos(), tokenizer->find("<|begin|>"));
  EXPECT_TRUE(tokenizer->is_special(*tokenizer->bos()));
  EXPECT_EQ(tokenizer->token_text(*tokenizer->bos()), "<|begin|>");
}

TEST(Tokenizer, SpecialTokensAreTextUnlessParsed) {
  const auto tokenizer = open_fixture("byte_level_llama3");
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "Hi<|end|> there";
  const Token end = *tokenizer->find("<|end|>");
  const std::vector<Token> plain = tokenizer->tokenize(text);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(tokenizer->detokenize(plain), text);
  const std::vector<Token> parsed = tokenizer->tokenize(text, {.parse_special = true});
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), end), 1);
  EXPECT_EQ(tokenizer->detokenize(parsed), "Hi there");
  EXPECT_EQ(tokenizer->detokenize(parsed, true), text);
}

TEST(Tokenizer, UnknownIdsHaveNoText) {
  const auto tokenizer = open_fixture("byte_level_llama3");
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<Token> ids = {-1, INT32_MIN, INT32_MAX, static_cast<Token>(100000)};
  EXPECT_EQ(tokenizer->detokenize(ids, true), "");
  EXPECT_EQ(tokenizer->token_text(-1), "");
  EXPECT_FALSE(tokenizer->is_special(INT32_MAX));
}

TEST(Tokenizer, AnyValidTextSurvivesARoundTripThroughBytes) {
  for (const char* name : {"byte_level_llama3", "metaspace_prepend", "spm_bpe"}) {
    const auto tokenizer = open_fixture(name);
    ASSERT_NE(tokenizer, nullptr);
    Random random(1);
    for (int i = 0; i < 300; ++i) {
      std::string text = random_utf8(random, random.below(60));
      if (std::string_view(name) != "byte_level_llama3" && text.find("▁") != text.npos) continue;
      EXPECT_EQ(tokenizer->detokenize(tokenizer->tokenize(text)), text) << name;
      EXPECT_EQ(tokenizer->detokenize(tokenizer->tokenize(text, {.parse_special = true}), true),
                text)
          << name;
    }
  }
}

TEST(Tokenizer, BrokenTextSurvivesWhereBytesHaveTokens) {
  Random random(2);
  const auto byte_level = open_fixture("byte_level_llama3");
  const auto prepended = open_fixture("metaspace_prepend");
  const auto unigram = open_fixture("unigram");
  ASSERT_TRUE(byte_level && prepended && unigram);
  for (int i = 0; i < 500; ++i) {
    const std::string text = random_bytes(random, random.below(80));
    EXPECT_EQ(byte_level->detokenize(byte_level->tokenize(text)), text);
    EXPECT_EQ(prepended->detokenize(prepended->tokenize(text)), text);
    for (const Token id : unigram->tokenize(text)) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, unigram->n_vocab());
    }
  }
  const std::string text = "caf\xc3 \xff\xfe ok\xe2\x96";
  EXPECT_EQ(byte_level->detokenize(byte_level->tokenize(text)), text);
  // Elsewhere U+FFFD is read.
  const std::string replaced = "a" + kReplacement + "b";
  EXPECT_EQ(unigram->tokenize("a\xff"
                              "b"),
            unigram->tokenize(replaced));
}

TEST(Tokenizer, OneCallEqualsManyCallsOnWords) {
  // The cache of pieces must not change ids: the same words, one call each.
  const auto tokenizer = open_fixture("byte_level_llama3");
  ASSERT_NE(tokenizer, nullptr);
  std::string text;
  std::vector<Token> expected;
  for (int i = 0; i < 200; ++i) {
    const std::string word = " word" + std::string(static_cast<size_t>(i % 7), 'x');
    text += word;
    const std::vector<Token> ids = tokenizer->tokenize(word);
    expected.insert(expected.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(tokenizer->tokenize(text), expected);
}

TEST(Tokenizer, HostileTextsTakeTimeInProportion) {
  const size_t n = 1 << 18;
  std::string mixed;
  while (mixed.size() < n) mixed += "a\xcc\x81\xcc\xa3 <|end <0x";
  std::string marks = "a";
  while (marks.size() < n) marks += "\xcc\x81\xcc\xa3";  // out of canonical order
  for (const char* name :
       {"byte_level_llama3", "byte_level_gpt2", "metaspace_prepend", "metaspace_first", "unigram",
        "unigram_bytes", "unigram_charsmap", "spm_bpe", "spm_unigram"}) {
    const auto tokenizer = open_fixture(name);
    ASSERT_NE(tokenizer, nullptr);
    const std::string texts[] = {std::string(n, 'a'),
                                 std::string(n, ' '),
                                 std::string(n, '\n'),
                                 std::string(n, '\xff'),
                                 std::string(n, '1'),
                                 std::string(n, ' ') + "x",
                                 mixed,
                                 marks};
    for (const std::string& text : texts) {
      const auto start = std::chrono::steady_clock::now();
      const std::vector<Token> ids = tokenizer->tokenize(text, {.parse_special = true});
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      // Linear work takes a fraction of a second; quadratic work would take minutes.
      EXPECT_LT(seconds.count(), 10.0) << name << ": " << text.substr(0, 20);
      EXPECT_LE(ids.size(), 8 * n);
    }
  }
}

TEST(Tokenizer, MissingFilesAreNamed) {
  const auto missing = Tokenizer::open("/no/such/place");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("/no/such/place"), std::string::npos);
  const auto empty = Tokenizer::open(QUERN_SOURCE_DIR "/src/base");
  ASSERT_FALSE(empty);
  EXPECT_NE(empty.error().message.find("tokenizer.json"), std::string::npos);
}

TEST(Utf8Stream, HoldsBackWhatMayBecomeACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xe2\x96"), "a");
  EXPECT_EQ(stream.push("\x81"), "▁");
  EXPECT_EQ(stream.push("\xf0"), "");
  EXPECT_EQ(stream.push("\x9f\xa6"), "");
  EXPECT_EQ(stream.push("\x99!"), "🦙!");
  EXPECT_EQ(stream.flush(), "");
}

TEST(Utf8Stream, ReplacesWhatNeverBecomesACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xff"), kReplacement);
  EXPECT_EQ(stream.push("\xe2\x96"), "");
  EXPECT_EQ(stream.push("a"), kReplacement + "a");
  EXPECT_EQ(stream.push("\xe0\x80"), kReplacement + kReplacement);  // overlong
  EXPECT_EQ(stream.push("\xed\xa0"), kReplacement + kReplacement);  // a surrogate
  EXPECT_EQ(stream.push("\xf4\x8f"), "");
  EXPECT_EQ(stream.flush(), kReplacement);
  EXPECT_EQ(stream.flush(), "");
}

TEST(Utf8Stream, GivesTheSameTextHoweverItIsCut) {
  Random random(3);
  for (int i = 0; i < 400; ++i) {
    const std::string text = i % 2 == 0 ? random_bytes(random, 40) : random_utf8(random, 12);
    Utf8Stream stream;
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random.below(4);
      out += stream.push(std::string_view(text).substr(at, n));
      EXPECT_TRUE(tok::is_valid_utf8(out));
      at += n;
    }
    out += stream.flush();
    EXPECT_EQ(out, tok::to_valid_utf8(text));
  }
}

}  // namespace
}  // namespace quern
