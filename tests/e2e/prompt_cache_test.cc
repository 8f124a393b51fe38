// SPDX-License-Identifier: Apache-2.0
// `run --prompt-cache`: what a second process generates is what one would have.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "formats/json.h"
#include "kvcache/kv_recipe.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

using test::Ran;
using test::run_quern;
using test::ScratchFolder;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

// The bundled model with the tables that `calibrate-kv` makes by itself; made once.
const std::string& fitted_tiny() {
  static const ScratchFolder folder;
  static const std::string path = [] {
    const std::string copy = folder / "tiny";
    std::filesystem::copy(kTiny, copy);
    const Ran ran = run_quern({"calibrate-kv", copy, "--nsamples", "2", "--seqlen", "128"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_TRUE(std::filesystem::exists(copy + "/kv_tables.safetensors"));
    return copy;
  }();
  return path;
}

std::string prompt() {
  std::string text;
  for (int i = 0; i < 10; ++i) {
    text +=
        "The history of the city begins with the Roman conquest, when a small settlement grew. ";
  }
  return text;
}

class PromptCacheRun : public ::testing::Test {
 protected:
  Ran run(std::vector<std::string> more) const {
    std::vector<std::string> args = {"run", fitted_tiny(), "--temp", "0", "--ignore-eos", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return run_quern(args);
  }
  Json result(const std::vector<std::string>& more) const {
    const Ran ran = run(more);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.code == 0 ? *parse_json(ran.out, "output") : Json();
  }
  void expect_refused(const std::vector<std::string>& more, const std::string& mentions) const {
    const Ran ran = run(more);
    EXPECT_EQ(ran.code, 1) << ran.err;
    EXPECT_EQ(ran.out, "");
    EXPECT_NE(ran.err.find(mentions), std::string::npos) << ran.err;
  }
  std::string file() const { return scratch_ / "cache"; }
  ScratchFolder scratch_;
};

TEST_F(PromptCacheRun, ASecondProcessGoesOnLikeTheFirst) {
  std::vector<std::string> caches = {"bf16",
                                     "f16",
                                     "f32",
                                     "kv(k=f16, v=int(3, per=channel), window=70)",
                                     "kv(k=qaq(30), v=qaq(10))",
                                     "q4 @ layers[1:2] | kv(k=int(2), v=qaq(10), sinks=2)"};
  for (const KvPreset& preset : kv_presets()) caches.emplace_back(preset.name);
  for (const std::string& kv : caches) {
    std::filesystem::remove(file());
    const Json whole = result({"-p", prompt(), "-n", "24", "--kv", kv});
    const Json first = result(
        {"-p", prompt(), "-n", "11", "--kv", kv, "--prompt-cache", file(), "--prompt-cache-all"});
    const Json second = result({"-n", "13", "--kv", kv, "--prompt-cache", file()});
    std::vector<int> tokens = first["tokens"];
    EXPECT_EQ(second["cached_tokens"], first["prompt_tokens"].get<int>() + 11) << kv;
    for (const int token : second["tokens"]) tokens.push_back(token);
    EXPECT_EQ(tokens, whole["tokens"].get<std::vector<int>>()) << kv;
  }
}

TEST_F(PromptCacheRun, OnlyWhatDiffersIsRun) {
  const std::string text = prompt();
  const Json fresh = result({"-p", text + "Later", "-n", "8"});
  const Json first = result({"-p", text, "-n", "0", "--prompt-cache", file()});
  const int n = first["prompt_tokens"];
  EXPECT_EQ(first["cached_tokens"], 0);
  const Json longer = result({"-p", text + "Later", "-n", "8", "--prompt-cache", file()});
  EXPECT_GE(longer["cached_tokens"], n - 2);  // the last word of the prompt may be cut otherwise
  EXPECT_EQ(longer["tokens"], fresh["tokens"]);
  // The file now has the longer prompt; a shorter one goes back, and leaves the file alone.
  const std::string before = *read_file(file());
  const Json back = result({"-p", text, "-n", "8", "--prompt-cache", file(), "--prompt-cache-ro"});
  EXPECT_GE(back["cached_tokens"], n - 2);
  EXPECT_EQ(back["tokens"], result({"-p", text, "-n", "8"})["tokens"]);
  EXPECT_EQ(*read_file(file()), before);
}

TEST_F(PromptCacheRun, WhatIsCodedIsRunAgain) {
  const std::string text = prompt();
  result({"-p", text, "-n", "0", "--kv", "kivi-2bit", "--prompt-cache", file()});
  const Json other = result({"-p", "The history of the", "-n", "8", "--kv", "kivi-2bit",
                             "--prompt-cache", file(), "--prompt-cache-ro"});
  EXPECT_EQ(other["cached_tokens"], 0);
  EXPECT_EQ(other["tokens"],
            result({"-p", "The history of the", "-n", "8", "--kv", "kivi-2bit"})["tokens"]);
}

TEST_F(PromptCacheRun, StrangersAreRefused) {
  result({"-p", prompt(), "-n", "0", "--prompt-cache", file()});
  const std::vector<std::string> args = {"-p", prompt(), "-n", "1", "--prompt-cache", file()};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), args.begin(), args.end());
    return more;
  };
  expect_refused(with({"--kv", "q4"}), "the saved cache is bf16, expected kv(int(4)");
  expect_refused(with({"--activations", "exact", "--kv", "bf16"}),
                 "saved by the model and activations");
  expect_refused({"-p", "x", "--prompt-cache", scratch_ / "none", "--prompt-cache-ro"}, "none");
  const std::string image = *read_file(file());
  ASSERT_TRUE(write_file_atomically(file(), image.substr(0, image.size() / 2)));
  expect_refused(args, "safetensors");
  const std::string model = QUERN_SOURCE_DIR "/models/tiny/model.safetensors";
  expect_refused({"-p", "x", "--prompt-cache", model, "--prompt-cache-ro"}, "no saved cache");
}

}  // namespace
}  // namespace quern
