// SPDX-License-Identifier: Apache-2.0
// Exact ids on large or foreign data, where that data is present.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/file.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

std::string shared_path(const std::string& name) {
  const char* root = std::getenv("QUERN_SHARED");
  return (root != nullptr ? std::string(root) : std::string(QUERN_SOURCE_DIR "/../shared")) + "/" +
         name;
}

bool exists(const std::string& path) { return std::filesystem::exists(path); }

// Counts tokens of WikiText-2 and says how long it took.
void expect_wikitext(const std::string& model, size_t n_expected) {
  const std::string text_path = shared_path("data/wikitext2/wiki.test.raw");
  if (!exists(text_path) || !exists(model)) GTEST_SKIP() << "no " << text_path;
  const auto text = read_file(text_path);
  ASSERT_TRUE(text);
  const auto tokenizer = Tokenizer::open(model);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto start = std::chrono::steady_clock::now();
  const std::vector<Token> ids = (*tokenizer)->tokenize(*text);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(ids.size(), n_expected);
  EXPECT_EQ((*tokenizer)->detokenize(ids), *text);
  ::testing::Test::RecordProperty("seconds", std::to_string(seconds.count()));
  std::cout << text->size() << " bytes, " << ids.size() << " tokens, " << seconds.count() << " s\n";
}

TEST(Reference, WikiTextHasTheTokensOfTheTinyModel) {
  expect_wikitext(QUERN_SOURCE_DIR "/models/tiny", 405384);
}

TEST(Reference, WikiTextHasTheTokensOfTheReferenceModel) {
  expect_wikitext(shared_path("models/ref"), 361802);
}

class GgmlVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(GgmlVocabulary, GivesTheExpectedIds) {
  const std::string path = shared_path("data/tokenizers/ggml-vocab-") + GetParam() + ".gguf";
  if (!exists(path)) GTEST_SKIP() << "no " << path;
  const auto tokenizer = Tokenizer::open(path);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto input = read_file(path + ".inp"), output = read_file(path + ".out");
  ASSERT_TRUE(input && output);
  std::istringstream lines(*output);
  const std::string divider = "\n__ggml_vocab_test__\n";
  size_t begin = 0, n_cases = 0;
  while (begin <= input->size()) {
    const size_t end = std::min(input->find(divider, begin), input->size());
    const std::string text = input->substr(begin, end - begin);
    begin = end + divider.size();
    std::string line;
    if (!std::getline(lines, line)) break;
    std::istringstream numbers(line);
    std::vector<Token> expected;
    for (Token id = 0; numbers >> id;) expected.push_back(id);
    EXPECT_EQ((*tokenizer)->tokenize(text), expected) << "text: '" << text << "'";
    ++n_cases;
  }
  EXPECT_GT(n_cases, 40u);
}

INSTANTIATE_TEST_SUITE_P(Reference, GgmlVocabulary,
                         ::testing::Values("gpt-2", "llama-spm", "phi-3"));

}  // namespace
}  // namespace quern
