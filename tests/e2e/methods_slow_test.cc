// SPDX-License-Identifier: Apache-2.0
// Published orderings of methods on the bundled model: what a method is for must show.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "eval/evaluate.h"
#include "recipe/compress.h"
#include "scratch.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

using test::ScratchFolder;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

// Divergence of each recipe's result from the bundled model, on a part of the bundled text.
enum class Outliers : uint8_t { kNone, kImitated };
std::vector<double> divergences(const std::vector<std::string>& recipes,
                                Outliers outliers = Outliers::kNone) {
  const ScratchFolder scratch;
  const std::string source = outliers == Outliers::kNone ? kTiny : scratch / "source";
  const std::string make = QUERN_SOURCE_DIR "/scripts/imitate_outliers " + kTiny + " " + source;
  if (outliers != Outliers::kNone && std::system(make.c_str()) != 0) return {};  // no Python
  const auto base = Model::open(kTiny);
  const auto text = read_file(QUERN_SOURCE_DIR "/models/evaluation.txt");
  const std::vector<Token> ids = (*Tokenizer::open(kTiny))->tokenize(*text);
  CompressOptions options;
  options.model = source;
  options.corpus.n_samples = 16;
  options.corpus.length = 256;
  std::vector<double> result;
  for (const std::string& recipe : recipes) {
    options.recipe = recipe;
    options.out = scratch / fmt::format("{}", result.size());
    const auto done = compress(options);
    EXPECT_TRUE(done.has_value()) << recipe << ": " << (done ? "" : done.error().message);
    const auto model = Model::open(options.out);
    EvalOptions eval;
    eval.n_ctx = 256;
    eval.max_windows = 20;
    const auto measured = evaluate(**model, base->get(), ids, eval);
    EXPECT_TRUE(measured.has_value());
    result.push_back(measured->kl_mean);
  }
  return result;
}

TEST(SlowMethods, AwqIsCloserThanRoundingAtThreeAndFourBits) {
  for (const int bits : {3, 4}) {
    const std::string codec = fmt::format("int({}, sym=false)", bits);
    const auto kl =
        divergences({fmt::format("rtn({})", codec), fmt::format("awq({0}) | rtn({0})", codec),
                     fmt::format("awq-{}bit", bits)});
    EXPECT_LT(kl[1], kl[0]) << bits;
    EXPECT_LT(kl[2], kl[1]) << bits << ": with the clip search";
  }
}

TEST(SlowMethods, SmoothingHelpsIntegerInputs) {
  const auto kl = divergences({"act(int(8)) | rtn(int(8, group=0))", "smoothquant-w8a8",
                               "crossquant-w8a8", "act(int(4)) | rtn(int(4))", "crossquant-w4a4"});
  EXPECT_LT(kl[1], kl[0]);
  EXPECT_LT(kl[2], kl[0]);
  EXPECT_LT(kl[4], kl[3]);
}

TEST(SlowMethods, QuarotRecoversMostOfWhatFourBitInputsCost) {
  const auto kl = divergences({"act(int(4, clip=0.9)) | ldlq(int(4, group=0, clip=search))",
                               "quarot-w4a4", "quarot-w4a8", "quarot-w8a8"});
  EXPECT_LT(kl[1], kl[0] / 2);
  EXPECT_LT(kl[2], kl[1]);
  EXPECT_LT(kl[3], kl[2] / 10);
}

// The paper's ablation, on the bundled model with the outliers of a large one.
TEST(SlowMethods, EachPartOfDuquantHelpsAndTheWholeIsCloserThanQuarot) {
  const std::string smooth = "smooth(alpha=0.6, sites=attn_in+heads+mlp_in+ffn) | ";
  const std::string code =
      "act(int(4, sym=false, clip=0.9)) | rtn(int(4, group=0, sym=false, clip=search))";
  const auto kl =
      divergences({code, smooth + code, smooth + "duquant(steps=64, permutations=0) | " + code,
                   smooth + "duquant(steps=64) | " + code, "rotate | " + code},
                  Outliers::kImitated);
  if (kl.empty()) GTEST_SKIP() << "without Python there are no outliers";
  EXPECT_LT(kl[1], kl[0]);
  EXPECT_LT(kl[2], kl[1]);
  EXPECT_LT(kl[3], kl[2]);
  EXPECT_LT(kl[3], kl[4]);
}

// Weights are coded for the inputs they will get.
TEST(SlowMethods, FeedbackIsForRoundedInputs) {
  const auto kl = divergences({"rotate | act(int(4, clip=0.9)) | rtn(int(3))",
                               "rotate | act(int(4, clip=0.9)) | ldlq(int(3))",
                               "rotate | act(int(4, clip=0.9)) | ldlq(int(3), drift=0.75)"});
  EXPECT_LT(kl[1], kl[0]);
  EXPECT_LT(kl[2], kl[1]);
}

}  // namespace
}  // namespace quern
