// SPDX-License-Identifier: Apache-2.0
// What evaluation holds does not grow with the context times the vocabulary.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "formats/json.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

using test::run_quern;
using test::ScratchFolder;

TEST(EvalMemory, GrowsByTheCacheAndTheRowsBeforeTheHead) {
  if (test::kIsSanitized) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  const ScratchFolder scratch;
  const std::string model = scratch / "model", text = scratch / "text";
  std::filesystem::copy(QUERN_SOURCE_DIR "/models/tiny", model);
  Json config = *read_json_file(model + "/config.json");
  config["max_position_embeddings"] = 8192;
  ASSERT_TRUE(write_file_atomically(model + "/config.json", config.dump()));
  std::string words;
  for (int i = 0; i < 4000; ++i) words += fmt::format("The city has {} rivers and a bridge. ", i);
  ASSERT_TRUE(write_file_atomically(text, words));
  const auto peak = [&](int64_t n_ctx) {
    const auto ran = run_quern({"eval", model, "--base", model, "--text", text, "--ctx",
                                fmt::format("{}", n_ctx), "--windows", "1", "--json", "-t", "2"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.peak_bytes;
  };
  constexpr int64_t kShort = 1024, kLong = 4096;
  const int64_t grown = (peak(kLong) - peak(kShort)) / (kLong - kShort);  // bytes a position
  // A cache of halves, a row before the head for each of the two models, and their negative
  // log-likelihoods and divergences as they are gathered, once more while they grow; beside them
  // tables of angles and what the allocator leaves.
  const int64_t cache = 6 * 2 * 2 * 64 * 2, rows = 2 * 256 * 4, scores = 2 * 2 * 2 * 8;
  EXPECT_LT(grown, cache + rows + scores + 4096) << "a row of logits alone has 16384";
}

}  // namespace
}  // namespace quern
