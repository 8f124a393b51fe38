// SPDX-License-Identifier: Apache-2.0
// Ids and texts equal to those of the reference implementations, on the fixtures that
// scripts/make_tokenizer_fixtures.py made with them.
#include <gtest/gtest.h>

#include "formats/json.h"
#include "tokenizer/loaders.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace quern {
namespace {

const std::string kFixtures = QUERN_SOURCE_DIR "/tests/data/tokenizers/";

std::string shown(const std::string& text) { return Json(text).dump(-1, ' ', true); }

class Fixture : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string directory = kFixtures + GetParam();
    auto tokenizer = Tokenizer::open(directory);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_ = std::move(*tokenizer);
    auto cases = read_json_file(directory + "/cases.json");
    ASSERT_TRUE(cases) << cases.error().message;
    cases_ = (*cases)["cases"];
    ASSERT_GT(cases_.size(), 100u);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  Json cases_;
};

TEST_P(Fixture, IdsEqualTheReference) {
  for (const Json& entry : cases_) {
    const auto text = entry["text"].get<std::string>();
    if (entry.contains("ids")) {
      EXPECT_EQ(tokenizer_->tokenize(text, {.parse_special = true}),
                entry["ids"].get<std::vector<Token>>())
          << shown(text);
    }
    EXPECT_EQ(tokenizer_->tokenize(text), entry["plain_ids"].get<std::vector<Token>>())
        << shown(text);
  }
}

TEST_P(Fixture, DecodedTextsEqualTheReference) {
  for (const Json& entry : cases_) {
    const char* ids = entry.contains("ids") ? "ids" : "plain_ids";
    const std::string text = tokenizer_->detokenize(entry[ids].get<std::vector<Token>>());
    EXPECT_EQ(tok::to_valid_utf8(text), entry["decoded"].get<std::string>()) << entry.dump();
  }
}

TEST_P(Fixture, StreamedTextsEqualWholeTexts) {
  for (const Json& entry : cases_) {
    const auto ids = entry["plain_ids"].get<std::vector<Token>>();
    TokenStream stream(*tokenizer_);
    std::string text;
    for (const Token id : ids) {
      text += stream.push(id);
      EXPECT_TRUE(tok::is_valid_utf8(text));
    }
    text += stream.flush();
    EXPECT_EQ(text, tok::to_valid_utf8(tokenizer_->detokenize(ids))) << entry.dump();
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Fixture,
                         ::testing::Values("byte_level_llama3", "byte_level_gpt2",
                                           "metaspace_prepend", "metaspace_first", "unigram",
                                           "unigram_bytes", "unigram_charsmap", "spm_bpe",
                                           "spm_unigram"),
                         [](const auto& info) { return std::string(info.param); });

TEST(PreTokenizers, PiecesEqualTheReference) {
  auto json = read_json_file(kFixtures + "pieces/tokenizer.json");
  auto cases = read_json_file(kFixtures + "pieces/cases.json");
  ASSERT_TRUE(json && cases);
  const auto texts = (*cases)["texts"].get<std::vector<std::string>>();
  for (const Json& row : (*cases)["rows"]) {
    (*json)["pre_tokenizer"] = row["pre_tokenizer"];
    const auto tokenizer = tok::parse_tokenizer_json(*json, {});
    ASSERT_TRUE(tokenizer) << row["name"] << ": " << tokenizer.error().message;
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*tokenizer)->tokenize(texts[i]), row["ids"][i].get<std::vector<Token>>())
          << row["name"] << ": " << shown(texts[i]);
    }
  }
}

}  // namespace
}  // namespace quern
