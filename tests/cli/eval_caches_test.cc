// SPDX-License-Identifier: Apache-2.0
// Tables of caches as `quern eval` prints them: divergence, and what is recalled of needles; and
// options that go together.
#include <gtest/gtest.h>

#include <algorithm>

#include "formats/json.h"
#include "program.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const std::string kCaches = "f16; kivi-2bit; kv(evict=streaming(window=28))";

test::Ran eval(std::vector<std::string> more) {
  std::vector<std::string> args = {"eval", kTiny, "--ctx", "192", "--activations", "exact"};
  args.insert(args.end(), more.begin(), more.end());
  return test::run_quern(args);
}

Json parsed(const test::Ran& ran) {
  EXPECT_EQ(ran.code, 0) << ran.err;
  return ran.code == 0 ? Json::parse(ran.out) : Json();
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

TEST(EvalCaches, DroppedPositionsCountAsHeldInNoBits) {
  const test::Ran ran = eval({"--caches", kCaches, "--windows", "2", "--csv"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(first_line(ran.out), "cache,bits,held_bits,ppl,stderr,kl_mean,kl_stderr,kl_p99,top1");
  EXPECT_NE(ran.out.find("\n\"f16\",16.0000,16.0000,"), std::string::npos) << ran.out;
  // 32 of 192 positions, and up to 64 that are not decided on yet
  const std::string row = "\"kv(evict=streaming(window=28))\",16.0000,";
  const size_t at = ran.out.find(row);
  ASSERT_NE(at, std::string::npos) << ran.out;
  const double held = std::stod(ran.out.substr(at + row.size()));
  EXPECT_GE(held, 16. * 32 / 192);
  EXPECT_LE(held, 16. * 96 / 192);
}

// All caches of a table are run beside each other, each as if it were alone.
TEST(EvalCaches, ATableIsWhatItsRowsAreAlone) {
  const auto rows = [](const std::string& caches) {
    return parsed(eval({"--caches", caches, "--windows", "3", "--json"}));
  };
  const Json all = rows("f16; bf16; q4; " + kCaches);
  ASSERT_EQ(all.size(), 6u);
  EXPECT_EQ(all[0]["kl_mean"], 0);
  EXPECT_GT(all[1]["kl_mean"].get<double>(), 0);  // plain too, but not what the others stand beside
  EXPECT_EQ(all[0]["ppl"], all[3]["ppl"]);
  for (const size_t row : {size_t{1}, size_t{2}, size_t{5}}) {
    const Json alone = rows(all[row]["kv"].get<std::string>());
    ASSERT_EQ(alone.size(), 1u);
    for (const char* key : {"ppl", "kl_mean", "kl_p99", "top1", "kv_held_bits", "tokens"}) {
      EXPECT_EQ(alone[0][key], all[row][key]) << all[row]["kv"] << " " << key;
    }
  }
}

TEST(Eval, WhatWouldBeIgnoredIsRefused) {
  using Words = std::vector<std::string>;
  const std::pair<Words, std::string> cases[] = {
      {{"--needle", "8", "--windows", "2"}, "--windows"},
      {{"--needle", "8", "--protocol", "strided"}, "--protocol"},
      {{"--needle", "8", "--samples", "2"}, "--samples"},
      {{"--needle", "8", "--baseline", "file"}, "--baseline"},
      {{"--caches", "q4", "--kv", "q8"}, "--kv"},
      {{"--caches", "q4", "--base", kTiny}, "--base"},
      {{"--caches", "q4", "--tasks", "file"}, "--tasks"},
      {{"--tasks", "file", "--text", "file"}, "--text"},
      {{"--tasks", "file", "--ctx", "64"}, "--ctx"},
      {{"--tasks", "file", "--samples", "2"}, "--samples"},
      {{"--tasks", "file", "--save-baseline", "file"}, "--save-baseline"},
      {{"--samples", "2", "--windows", "2"}, "--windows"},
      {{"--samples", "2", "--kl-divergence-base", "file"}, "--kl-divergence-base"},
      {{"--limit", "2"}, "--limit requires --tasks"},
      {{"--answers", "file"}, "--answers requires --tasks"},
      {{"--needle-depths", "2"}, "--needle-depths requires --needle"},
      {{"--csv"}, "--csv is for"},
  };
  for (const auto& [words, expected] : cases) {
    Words args = {"eval", kTiny};
    args.insert(args.end(), words.begin(), words.end());
    const test::Ran ran = test::run_quern(args);
    EXPECT_EQ(ran.code, 2) << words[0] << " " << words.back();
    EXPECT_NE(ran.err.find(expected), std::string::npos) << words[0] << ": " << ran.err;
  }
}

TEST(EvalCaches, NeedlesAreRecalledByWhatKeepsThem) {
  const std::vector<std::string> args = {"--needle",        "24",   "--needle-copies",  "2",
                                         "--needle-depths", "2",    "--needle-samples", "3",
                                         "--caches",        kCaches};
  const auto with = [&](const std::string& flag, const std::string& value = "") {
    std::vector<std::string> all = args;
    all.push_back(flag);
    if (!value.empty()) all.insert(all.end(), {value, "--json"});
    return eval(all);
  };
  const Json json = parsed(with("--json"));
  EXPECT_EQ(json["needle_tokens"], 24);
  EXPECT_EQ(json["copies"], 2);
  EXPECT_EQ(json["ctx"], 192);
  const Json& rows = json["caches"];
  ASSERT_EQ(rows.size(), 3u);
  for (const Json& row : rows) {
    ASSERT_EQ(row["depths"].size(), 2u);
    for (const char* key : {"recall", "recall_control", "recall_stderr"}) {
      EXPECT_GE(row[key].get<double>(), 0) << key;
      EXPECT_LE(row[key].get<double>(), 1) << key;
    }
    EXPECT_LT(row["log_p"].get<double>(), 0);
  }
  EXPECT_EQ(rows[0]["recall_difference"], 0);
  EXPECT_EQ(rows[0]["kv_held_bits"], 16);
  const auto gain = [&](size_t cache) {
    return rows[cache]["depths"][0]["log_p"].get<double>() -
           rows[cache]["log_p_control"].get<double>();
  };
  EXPECT_GT(gain(0), .3);
  EXPECT_LT(gain(2), gain(0) / 2);  // out of its window
  EXPECT_EQ(parsed(with("--seed", "0"))["caches"][0]["log_p"], rows[0]["log_p"]);
  EXPECT_NE(parsed(with("--seed", "1"))["caches"][0]["log_p"], rows[0]["log_p"]);

  const test::Ran csv = with("--csv");
  ASSERT_EQ(csv.code, 0) << csv.err;
  EXPECT_EQ(first_line(csv.out),
            "needle_tokens,cache,bits,held_bits,recall,stderr,difference,difference_stderr,control,"
            "log_p,control_log_p,recall_25,recall_75");
  EXPECT_EQ(std::count(csv.out.begin(), csv.out.end(), '\n'), 4);
}

// Without --caches it is the one of --kv, beside the plain cache of the base.
TEST(EvalCaches, NeedlesOfOneCache) {
  const Json json = parsed(
      eval({"--needle", "8", "--needle-copies", "2", "--needle-depths", "1", "--needle-samples",
            "2", "--base", kTiny, "--json", "--kv", "kv(evict=h2o(32))"}));
  ASSERT_EQ(json["caches"].size(), 1u);
  EXPECT_EQ(json["caches"][0]["kv"].get<std::string>().rfind("kv(evict=h2o(", 0), 0u);
  EXPECT_EQ(eval({"--needle", "7"}).code, 2);
  EXPECT_EQ(eval({"--needle", "64"}).code, 2);  // more than fits
}

}  // namespace
}  // namespace quern
