// SPDX-License-Identifier: Apache-2.0
// Tokenizers in GGUF, on files put together here.
#include <gtest/gtest.h>

#include <cstring>

#include "tokenizer/gguf_pre.h"
#include "tokenizer/loaders.h"
#include "tokenizer/regex.h"

namespace quern::tok {
namespace {

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }

enum ValueType : uint32_t { kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };

class File {
 public:
  void add(const std::string& key, uint32_t type, const std::string& value) {
    body_ += text(key) + raw(type) + value;
    ++n_keys_;
  }
  void add_list(const std::string& key, uint32_t type, const std::vector<std::string>& values) {
    std::string all = raw(type) + raw<uint64_t>(values.size());
    for (const std::string& value : values) all += value;
    add(key, kArray, all);
  }
  Result<std::unique_ptr<Tokenizer>> open() const {
    const std::string image =
        "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw(n_keys_) + body_ + std::string(32, '\0');
    QUERN_ASSIGN(const auto file, parse_gguf(std::as_bytes(std::span(image))));
    return parse_gguf_tokenizer(file.metadata);
  }

 private:
  std::string body_;
  uint64_t n_keys_ = 0;
};

const std::string kPrefix = "tokenizer.ggml.";

File gpt2(const std::string& pre) {
  File file;
  file.add(kPrefix + "model", kString, text("gpt2"));
  file.add(kPrefix + "pre", kString, text(pre));
  std::vector<std::string> tokens, types, merges = {text("Ġ a"), text("1 2")};
  for (const char* token : {"a", "b", "Ġ", "Ġa", "1", "2", "12", "<é>"}) {
    tokens.push_back(text(token));
    types.push_back(raw<int32_t>(std::string_view(token) == "<é>" ? 3 : 1));
  }
  file.add_list(kPrefix + "tokens", kString, tokens);
  file.add_list(kPrefix + "token_type", kI32, types);
  file.add_list(kPrefix + "merges", kString, merges);
  return file;
}

File llama(size_t n_scores = 262) {
  File file;
  file.add(kPrefix + "model", kString, text("llama"));
  std::vector<std::string> tokens, types, scores;
  const auto add = [&](const std::string& token, int32_t type, float score) {
    tokens.push_back(text(token));
    types.push_back(raw(type));
    if (scores.size() < n_scores) scores.push_back(raw(score));
  };
  add("<unk>", 2, 0);
  add("<s>", 3, 0);
  for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte), 6, 0);
  add("▁", 1, -3);
  add("a", 1, -2);
  add("▁a", 1, -1);
  add("[X]", 4, 0);
  file.add_list(kPrefix + "tokens", kString, tokens);
  file.add_list(kPrefix + "token_type", kI32, types);
  file.add_list(kPrefix + "scores", kF32, scores);
  return file;
}

TEST(GgufTokenizer, ReadsByteLevelVocabularies) {
  File file = gpt2("gpt-2");
  file.add(kPrefix + "eos_token_id", kU32, raw<uint32_t>(7));
  file.add("tokenizer.chat_template", kString, text("hello"));
  const auto tokenizer = file.open();
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.tokenize("ab a12"), (std::vector<Token>{0, 1, 3, 6}));
  EXPECT_EQ(t.tokenize("a<é>b", {.parse_special = true}), (std::vector<Token>{0, 7, 1}));
  EXPECT_EQ(t.detokenize(std::vector<Token>{3, 7, 6}, true), " a<é>12");
  EXPECT_EQ(t.eos(), 7);
  EXPECT_FALSE(t.bos().has_value());
  EXPECT_FALSE(t.adds_bos());
  EXPECT_EQ(t.chat_template(), "hello");
}

TEST(GgufTokenizer, ReadsSentencePieceVocabularies) {
  const auto tokenizer = llama().open();
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.tokenize("a a"), (std::vector<Token>{260, 260}));
  EXPECT_EQ(t.tokenize("é"), (std::vector<Token>{258, 2 + 0xc3, 2 + 0xa9}));
  EXPECT_EQ(t.tokenize("[X]a\xff"), (std::vector<Token>{261, 260, 2 + 0xff}));
  EXPECT_EQ(t.detokenize(t.tokenize("a é\xff a")), "a é\xff a");
  EXPECT_EQ(t.bos(), 1);
  EXPECT_TRUE(t.adds_bos());
}

TEST(GgufTokenizer, EveryKnownCuttingCompiles) {
  for (const char* name : {"default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "dbrx", "tekken",
                           "gpt-4o", "seed-coder", "deepseek-v3", "deepseek-coder", "starcoder",
                           "falcon", "smollm", "olmo", "refact"}) {
    const auto tokenizer = gpt2(name).open();
    ASSERT_TRUE(tokenizer) << name << ": " << tokenizer.error().message;
    EXPECT_EQ((*tokenizer)->detokenize((*tokenizer)->tokenize("ab a12b")), "ab a12b") << name;
  }
}

TEST(GgufTokenizer, UnknownCuttingsAreRefusedWithTheList) {
  const auto tokenizer = gpt2("nonsense").open();
  ASSERT_FALSE(tokenizer);
  EXPECT_NE(tokenizer.error().message.find("'nonsense'"), std::string::npos);
  EXPECT_NE(tokenizer.error().message.find("llama-bpe"), std::string::npos);
}

TEST(GgufTokenizer, RefusesWhatIsMalformed) {
  const auto expect = [](const File& file, const std::string& reason) {
    const auto tokenizer = file.open();
    ASSERT_FALSE(tokenizer) << reason;
    EXPECT_NE(tokenizer.error().message.find(reason), std::string::npos)
        << tokenizer.error().message;
  };
  expect(File(), "tokenizer.ggml.model");
  File bert;
  bert.add(kPrefix + "model", kString, text("bert"));
  expect(bert, "'bert' is not supported; known: llama, gpt2");
  expect(llama(5), "scores: 5 values for 262 tokens");
  File far = llama();
  far.add(kPrefix + "bos_token_id", kU32, raw<uint32_t>(262));
  expect(far, "bos_token_id");
  File twice;
  twice.add(kPrefix + "model", kString, text("gpt2"));
  twice.add_list(kPrefix + "tokens", kString, {text("a"), text("a")});
  twice.add_list(kPrefix + "merges", kString, {});
  expect(twice, "token 'a' has the ids 0 and 1");
}

}  // namespace
}  // namespace quern::tok
