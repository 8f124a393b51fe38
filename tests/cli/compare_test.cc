// SPDX-License-Identifier: Apache-2.0
// What `quern compare` writes beside its table.
#include <gtest/gtest.h>

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
