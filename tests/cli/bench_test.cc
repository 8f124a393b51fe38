// SPDX-License-Identifier: Apache-2.0
// `quern bench` as scripts see it.
#include <gtest/gtest.h>

#include "expect.h"
#include "formats/json.h"
#include "program.h"

namespace quern {
namespace {

using test::expect_failure;
using test::keys_missing;
using test::Ran;
using test::run_quern;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const std::string kLlama = QUERN_SOURCE_DIR "/tests/data/fixtures/llama";

// Of `bench --json`.
const char* const kBenchKeys[] = {"codec",
                                  "isa",
                                  "threads",
                                  "batch",
                                  "prompt_tokens_per_second",
                                  "prompt_tokens_per_second_min",
                                  "generated_tokens_per_second",
                                  "generated_tokens_per_second_min",
                                  "weight_bytes_per_token",
                                  "weight_gb_per_second",
                                  "generated_attention_share",
                                  "kv_bytes_per_token",
                                  "kv_gb_per_second"};

TEST(CliBench, TheUsualCacheFollowsTheActivations) {
  const auto kv = [](std::vector<std::string> more) {
    std::vector<std::string> words = {"bench", kLlama, "-p", "4", "-n", "1", "-r", "1", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = run_quern(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return Json::parse(ran.out)["kv"].get<std::string>();
  };
  EXPECT_EQ(kv({}), "bf16");
  EXPECT_EQ(kv({"--activations", "exact"}), "f16");
  EXPECT_EQ(kv({"--activations", "bf16"}), "bf16");
  EXPECT_EQ(kv({"--activations", "exact", "--kv", "bf16"}), "bf16");
  EXPECT_EQ(kv({"--kv", "f32"}), "f32");
}

TEST(CliBench, TimesAModelOrAShape) {
  const std::vector<std::string> keys(std::begin(kBenchKeys), std::end(kBenchKeys));
  Ran ran = run_quern({"bench", kLlama, "-p", "4", "-n", "2", "-r", "1", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(keys_missing(Json::parse(ran.out), keys), std::vector<std::string>());
  const std::vector<std::string> shape = {"bench",
                                          "--shape",
                                          "tiny",
                                          "--codec",
                                          "int(4, group=64)",
                                          "--head-codec",
                                          "f16",
                                          "-p",
                                          "4",
                                          "-n",
                                          "2",
                                          "-r",
                                          "2",
                                          "--batch",
                                          "3"};
  std::vector<std::string> as_json = shape;
  as_json.emplace_back("--json");
  ran = run_quern(as_json);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  EXPECT_EQ(keys_missing(json, keys), std::vector<std::string>());
  EXPECT_EQ(json["model"], "tiny");
  EXPECT_EQ(json["codec"], "int(4, group=64), f16");
  EXPECT_EQ(json["batch"], 3);
  EXPECT_EQ(json["generated_runs"].size(), 2u);
  // A step reads the weights once for all three sequences.
  const double per_step = json["weight_gb_per_second"].get<double>() * 1e9 /
                          json["weight_bytes_per_token"].get<double>();
  EXPECT_NEAR(json["generated_tokens_per_second"].get<double>(), 3 * per_step, 1e-6 * per_step);
  ran = run_quern(shape);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("tiny  int(4, group=64), f16"), std::string::npos) << ran.out;
  EXPECT_EQ(json["activations"], "int8");
  ran = run_quern({"bench", kLlama, "-p", "4", "-n", "2", "-r", "1", "--roofline", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json shares = Json::parse(ran.out);
  EXPECT_EQ(keys_missing(shares, keys), std::vector<std::string>());
  EXPECT_GT(shares["bandwidth_share"], 0);
  EXPECT_GT(shares["prompt_peak_share"], 0);
  EXPECT_EQ(keys_missing(shares["roofline"],
                         {"read_gb_per_second", "copy_gb_per_second", "peak_gop_per_second"}),
            std::vector<std::string>());
  EXPECT_EQ(shares["prompt_peak"].get<std::string>().rfind("fp32_", 0), 0u) << "nothing is coded";
}

TEST(CliBench, RoundsInputsAsAsked) {
  const Ran ran = run_quern({"bench", "--shape", "tiny", "--codec", "int(4)", "--act",
                             "int(4, clip=0.9)", "-p", "4", "-n", "2", "-r", "1", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(Json::parse(ran.out)["activations"], "int(4, clip=0.9)");
}

TEST(CliBench, TellsTheShareOfOnlineOperators) {
  for (const bool is_rotated : {false, true}) {
    std::vector<std::string> command = {"bench", "--shape", "tiny", "-p", "4",
                                        "-n",    "2",       "-r",   "1",  "--json"};
    if (is_rotated) command.insert(command.end(), {"--transform", "rotate(sites=ffn)"});
    const Ran ran = run_quern(command);
    ASSERT_EQ(ran.code, 0) << ran.err;
    const Json json = Json::parse(ran.out);
    EXPECT_EQ(json["prompt_online_share"] > 0, is_rotated);
    EXPECT_EQ(json["generated_online_share"] > 0, is_rotated);
  }
}

TEST(CliBench, RefusesWhatItCannotTime) {
  expect_failure({"bench", kTiny, "--transform", "rotate"}, 2, "--shape");
  expect_failure({"bench", "--shape", "tiny", "--transform", "turn"}, 2, "rotate");
  expect_failure({"bench", "--shape", "tiny", "--transform", "rtn(int(4))"}, 2, "transform");
  expect_failure({"bench"}, 2, "--shape");
  expect_failure({"bench", kTiny, "--shape", "tiny"}, 2, "--shape");
  expect_failure({"bench", "--shape", "huge"}, 2, "tinyllama");
  expect_failure({"bench", "--shape", "tiny", "--codec", "fly(3)"}, 2, "fly");
  expect_failure({"bench", "--shape", "tiny", "--act", "int(8)"}, 2, "coded");
  expect_failure({"bench", "--shape", "tiny", "--codec", "int(4)", "--act",
                  "int(8, per=tensor, scale=static)"},
                 2, "static");
  for (const char* kv : {"kvquant-3bit", "kv(evict=less(h2o(32)))"}) {
    expect_failure({"bench", "--shape", "tiny", "--kv", kv}, 2, "give a MODEL, with tables");
  }
}

}  // namespace
}  // namespace quern
