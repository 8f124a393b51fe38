// SPDX-License-Identifier: Apache-2.0
// Files that are refused, and what stands beside a tokenizer.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "tokenizer/loaders.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

Json bpe(Json changes = Json::object()) {
  Json json = Json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": null, "pre_tokenizer": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
  json.merge_patch(changes);
  return json;
}

std::string refusal(const Json& json) {
  const auto tokenizer = parse_tokenizer_json(json, {});
  return tokenizer ? "" : tokenizer.error().message;
}

void expect_refused(const Json& json, const std::string& reason) {
  const std::string message = refusal(json);
  EXPECT_NE(message.find(reason), std::string::npos)
      << "got: '" << message << "', expected: '" << reason << "'";
}

TEST(TokenizerJson, ReadsASmallFile) {
  const auto tokenizer = parse_tokenizer_json(bpe(), {});
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->tokenize("abac<s>", {.parse_special = true}),
            (std::vector<Token>{2, 0, 3, 4}));
  EXPECT_EQ((*tokenizer)->n_vocab(), 5);
}

TEST(TokenizerJson, RefusesWhatItDoesNotDo) {
  expect_refused(bpe({{"model", {{"type", "WordPiece"}}}}), "model 'WordPiece'");
  expect_refused(bpe({{"model", {{"dropout", 0.5}}}}), "dropout");
  expect_refused(bpe({{"model", {{"end_of_word_suffix", "</w>"}}}}), "end_of_word_suffix");
  expect_refused(bpe({{"normalizer", {{"type", "BertNormalizer"}}}}),
                 "normalizer 'BertNormalizer'");
  expect_refused(bpe({{"pre_tokenizer", {{"type", "Unknown"}}}}), "pre_tokenizer 'Unknown'");
  expect_refused(bpe({{"decoder", {{"type", "CTC"}}}}), "decoder 'CTC'");
}

TEST(TokenizerJson, RefusesWhatIsMalformed) {
  expect_refused(Json::array(), "expected an object");
  expect_refused(bpe({{"model", 3}}), "'model'");
  expect_refused(bpe({{"model", {{"vocab", {{"a", 1}}}}}}), "share the id 1");
  expect_refused(bpe({{"model", {{"vocab", {{"a", -1}}}}}}), "id -1");
  expect_refused(bpe({{"model", {{"vocab", {{"a", 1 << 24}}}}}}), "id 16777216");
  expect_refused(bpe({{"model", {{"vocab", {{"a", 0.5}}}}}}), "no integer");
  expect_refused(bpe({{"model", {{"vocab", {{std::string(70000, 'x'), 9}}}}}}), "70000 bytes");
  expect_refused(bpe({{"model", {{"merges", {"a b c"}}}}}), "merge 0");
  expect_refused(bpe({{"model", {{"merges", {"a x"}}}}}), "'x' is not a token");
  expect_refused(bpe({{"model", {{"merges", {"b a"}}}}}), "'ba' is not a token");
  expect_refused(bpe({{"model", {{"merges", 7}}}}), "'merges'");
  expect_refused(bpe({{"added_tokens", {{{"id", 0}, {"content", "x"}}}}}), "id 0");
  expect_refused(bpe({{"added_tokens", {{{"id", 7}, {"content", ""}}}}}), "0 bytes");
  expect_refused(
      bpe({{"added_tokens", {{{"id", 7}, {"content", "x"}}, {{"id", 7}, {"content", "y"}}}}}),
      "not unique");
  expect_refused(
      bpe({{"pre_tokenizer",
            {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}}}),
      "pattern '(a'");
  expect_refused(bpe({{"pre_tokenizer",
                       {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "No"}}}}),
                 "behavior 'No'");
}

TEST(TokenizerJson, RefusesTextThatGrowsWithoutBound) {
  const Json step = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(100, 'a')}};
  expect_refused(bpe({{"normalizer", {{"type", "Sequence"}, {"normalizers", {step, step}}}}}),
                 "lengthen");
}

class Directory {
 public:
  Directory() {
    path_ = std::filesystem::temp_directory_path() /
            ("quern_tokenizer_" + std::to_string(reinterpret_cast<uintptr_t>(this)));
    std::filesystem::create_directories(path_);
    write("tokenizer.json", bpe());
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const Json& json) { write_text(name, json.dump()); }
  void write_text(const std::string& name, const std::string& text) {
    ASSERT_TRUE(write_file_atomically((path_ / name).string(), text));
  }
  Result<std::unique_ptr<Tokenizer>> open() const { return Tokenizer::open(path_.string()); }

 private:
  std::filesystem::path path_;
};

TEST(TokenizerExtras, ComeFromTokenizerConfig) {
  Directory directory;
  directory.write("tokenizer_config.json", Json{{"bos_token", {{"content", "<s>"}}},
                                                {"eos_token", "c"},
                                                {"add_bos_token", true},
                                                {"chat_template", "hello"}});
  const auto tokenizer = directory.open();
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->bos(), 4);
  EXPECT_EQ((*tokenizer)->eos(), 3);
  EXPECT_TRUE((*tokenizer)->adds_bos());
  EXPECT_EQ((*tokenizer)->chat_template(), "hello");
}

TEST(TokenizerExtras, FallBackToIdsOfTheModel) {
  Directory directory;
  directory.write("config.json", Json{{"bos_token_id", 4}, {"eos_token_id", 1}});
  directory.write("generation_config.json", Json{{"eos_token_id", {2, 3}}});
  directory.write(
      "tokenizer_config.json",
      Json{{"chat_template",
            {{{"name", "tool"}, {"template", "x"}}, {{"name", "default"}, {"template", "y"}}}}});
  const auto tokenizer = directory.open();
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->bos(), 4);
  EXPECT_EQ((*tokenizer)->eos(), 2);
  EXPECT_FALSE((*tokenizer)->adds_bos());
  EXPECT_EQ((*tokenizer)->chat_template(), "y");
}

TEST(TokenizerExtras, TemplateFileWinsAndBrokenConfigsAreNamed) {
  Directory directory;
  directory.write_text("chat_template.jinja", "from the file");
  directory.write("tokenizer_config.json", Json{{"chat_template", "from the config"}});
  auto tokenizer = directory.open();
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ((*tokenizer)->chat_template(), "from the file");
  directory.write("tokenizer_config.json", Json{{"bos_token", 7}});
  tokenizer = directory.open();
  ASSERT_FALSE(tokenizer);
  EXPECT_NE(tokenizer.error().message.find("tokenizer_config.json: 'bos_token'"),
            std::string::npos);
}

TEST(NormalForm, SortsAndComposesMarks) {
  EXPECT_EQ(to_normal_form("e\u0301", NormalForm::kNfc), "\u00e9");
  EXPECT_EQ(to_normal_form("\u00e9", NormalForm::kNfd), "e\u0301");
  EXPECT_EQ(to_normal_form("a\u0301\u0323", NormalForm::kNfd), "a\u0323\u0301");
  EXPECT_EQ(to_normal_form("a\u0301\u0323", NormalForm::kNfc), "\u1ea1\u0301");
  EXPECT_EQ(to_normal_form("\ufb01\u2163", NormalForm::kNfkc), "fiIV");
  EXPECT_EQ(to_normal_form("\u1112\u1161\u11ab", NormalForm::kNfc), "\ud55c");
  EXPECT_EQ(to_normal_form("\u212b", NormalForm::kNfc), "\u00c5");
}

}  // namespace
}  // namespace quern::tok
