// SPDX-License-Identifier: Apache-2.0
// What `quern compare` writes beside its table.
#include <gtest/gtest.h>

#include <numeric>

#include "base/file.h"
#include "formats/json.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

using test::Ran;
using test::run_quern;
using test::ScratchFolder;

constexpr const char* kTiny = QUERN_SOURCE_DIR "/models/tiny";

TEST(CliCompare, WritesReportsAndAnswersTasks) {
  const ScratchFolder scratch;
  const std::string text = scratch / "text", task = scratch / "colours.jsonl";
  std::string words;
  for (int i = 0; i < 40; ++i) words += "The history of the city begins with a small settlement. ";
  ASSERT_TRUE(write_file_atomically(text, words));
  ASSERT_TRUE(write_file_atomically(
      task,
      "{\"context\": \"The sky is\", \"choices\": [\"blue\", \"made of\"], \"gold\": 0}\n"
      "{\"context\": \"The city\", \"choices\": [\"of of\", \"is\"], \"gold\": 1}\n"
      "{\"context\": \"left out\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n"));
  const std::vector<std::string> args = {
      "compare",    kTiny,
      "--recipes",  "rtn(int(8)); rtn(int(2))",
      "--work",     scratch / "work",
      "--text",     text,
      "--ctx",      "64",
      "--windows",  "2",
      "--no-speed", "--tasks",
      task,         "--limit",
      "2",          "--samples",
      "1",          "-n",
      "4",          "--plot",
      "--report",   fmt::format("{0}.html,{0}.md,{0}.json,{0}.csv", scratch / "out")};
  const Ran ran = run_quern(args);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("colours"), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find("  A      6.91 MB"), std::string::npos) << ran.out;
  const auto json = read_json_file(scratch / "out.json");
  ASSERT_TRUE(json) << json.error().message;
  for (const Json& row : (*json)["rows"]) {
    ASSERT_EQ(row["tasks"].size(), 1u);
    EXPECT_EQ(row["tasks"][0]["items"], 2);
    EXPECT_EQ(row["tasks"][0].contains("p_value"), row["recipe"] != "original");
    EXPECT_EQ(row.contains("samples"), row["recipe"] != "original");
    EXPECT_EQ(row["matrices"].size(), 6 * 7 + 1u);
    EXPECT_EQ(row.contains("compress_command"), row["recipe"] != "original");
  }
  EXPECT_EQ((*json)["rows"][1]["matrices"][1]["bits"], 8.125);
  const auto page = read_file(scratch / "out.html"), csv = read_file(scratch / "out.csv"),
             markdown = read_file(scratch / "out.md");
  ASSERT_TRUE(page && csv && markdown);
  EXPECT_NE(page->find("Chart.js"), std::string::npos);
  EXPECT_EQ(csv->rfind("recipe,bytes", 0), 0u);
  EXPECT_NE(markdown->find("quern compress"), std::string::npos);
  const Ran refused =
      run_quern({"compare", kTiny, "--recipes", "rtn(int(4))", "--report", "a.pdf"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find(".html"), std::string::npos) << refused.err;
}

TEST(CliCompare, ReportsWhatEachLayerCostsAlone) {
  const ScratchFolder scratch;
  const auto compare = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"compare", kTiny, "--recipes",
                               "rtn(int(3)) @ layers[2:3]; rotate(rht) | rtn(int(3)); "
                               "slice(0.25) | rtn(int(8)); rtn(int(3)) @ embed",
                               "--work", scratch / "work", "--ctx", "64", "--windows", "4",
                               "--nsamples", "2", "--seqlen", "64", "--no-speed", "--report",
                               fmt::format("{0}.json,{0}.csv,{0}.md", scratch / "out")});
    const Ran ran = run_quern(more);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return *read_json_file(scratch / "out.json");
  };
  const Json json = compare({"--activations", "exact"});
  EXPECT_EQ(json["evaluation"]["layer_tokens"], 4 * 63);
  for (const Json& row : json["rows"]) {
    const std::string recipe = row["recipe"];
    const bool is_measured = recipe != "original" && recipe.rfind("slice", 0) != 0;
    ASSERT_EQ(row.contains("layer_kl"), is_measured) << recipe;
    EXPECT_EQ(row.contains("ends_kl"), recipe == "rtn(int(3)) @ embed");
    if (!is_measured) continue;
    const std::vector<double> layers = row["layer_kl"];
    ASSERT_EQ(layers.size(), 6u);
    const double kl = row["kl_mean"], sum = std::accumulate(layers.begin(), layers.end(), 0.0);
    if (recipe == "rtn(int(3)) @ embed") {
      EXPECT_EQ(sum, 0);  // every layer is the original's own
      // The same model as a whole, whose cache holds halves.
      EXPECT_NEAR(row["ends_kl"].get<double>(), kl, .01 * kl);
    } else if (recipe.rfind("rotate", 0) == 0) {
      // Small errors add up, as long as they have little to do with each other.
      EXPECT_NEAR(sum, kl, .3 * kl);
      for (const double layer : layers) EXPECT_GT(layer, .02 * kl);
    } else {
      for (size_t i = 0; i < 6; ++i) {
        EXPECT_EQ(layers[i] == 0, i != 2) << i;
      }
      EXPECT_NEAR(layers[2], kl, .01 * kl);
    }
  }
  const std::string csv = *read_file(scratch / "out.csv"), text = *read_file(scratch / "out.md");
  EXPECT_NE(csv.find(",kl_ends,kl_layer_0,"), std::string::npos);
  EXPECT_NE(csv.find(",kl_layer_5\n"), std::string::npos);
  EXPECT_NE(text.find("KL of each layer alone"), std::string::npos);
  EXPECT_FALSE(compare({"--layer-windows", "0"})["rows"][1].contains("layer_kl"));
}

TEST(CliEval, MeasuresAgainstAFileInThePlaceOfTheBase) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out", file = scratch / "base.kl";
  ASSERT_EQ(run_quern({"compress", kTiny, "-o", out, "--recipe", "rtn(int(3))"}).code, 0);
  const auto eval = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {"eval"});
    args.insert(args.end(), {"--ctx", "128", "--windows", "2", "--json"});
    return run_quern(args);
  };
  const Ran full = eval({out, "--base", kTiny});
  const Ran saved = eval({kTiny, "--kl-divergence-base", file});  // llama.cpp's words
  ASSERT_EQ(full.code + saved.code, 0) << full.err << saved.err;
  for (const auto& words : {std::vector<std::string>{out, "--baseline", file},
                            {out, "--kl-divergence-base", file, "--kl-divergence"}}) {
    const Ran kept = eval(words);
    ASSERT_EQ(kept.code, 0) << kept.err;
    const Json a = Json::parse(full.out), b = Json::parse(kept.out);
    const double error = b["kl_draw_stderr"];
    EXPECT_GT(error, 0);
    EXPECT_LT(error, .1 * a["kl_mean"].get<double>());
    EXPECT_NEAR(b["kl_mean"].get<double>(), a["kl_mean"].get<double>(), 4 * error);
    EXPECT_LT(b["kl_least"], a["kl_mean"]);
    EXPECT_EQ(b["top1"], a["top1"]);
    EXPECT_NEAR(b["base_ppl"].get<double>(), Json::parse(saved.out)["ppl"].get<double>(), 1e-3);
  }
  Ran refused = eval({out, "--baseline", file, "--protocol", "strided"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("bos_windows"), std::string::npos) << refused.err;
  refused = eval({out, "--baseline", file, "--base", kTiny});
  EXPECT_EQ(refused.code, 2) << refused.err;
  refused = eval({out, "--baseline", std::string(kTiny) + "/model.safetensors"});
  EXPECT_EQ(refused.code, 1) << refused.err;
}

}  // namespace
}  // namespace quern
