// SPDX-License-Identifier: Apache-2.0
// Published orderings of caches on a trained model: what a method is for must show. They read
// shared data and are skipped where there is none. Differences are between means over the same
// tokens, and larger than what other windows of the text change.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "allocate/kv_plan.h"
#include "base/file.h"
#include "calib/kv_fit.h"
#include "eval/evaluate.h"
#include "scratch.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

class SlowKvMethods : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string source = test::shared_path("models/ref");
    const std::string text = test::shared_path("data/wikitext2/wiki.test.raw");
    const std::string calibration = test::shared_path("data/calib/wiki.utf8");
    if (source.empty() || text.empty() || calibration.empty()) GTEST_SKIP() << "no shared data";
    path_ = scratch_ / "ref";
    std::filesystem::copy(source, path_);
    model_ = *Model::open(path_);
    const auto tokenizer = *Tokenizer::open(path_);
    ids_ = tokenizer->tokenize(test::content_of(text));
    calibration_ = *corpus_from_text(model_->desc(), *tokenizer, test::content_of(calibration),
                                     "wiki", {.n_samples = 8, .length = 1024});
  }

  std::string planned(const std::string& text) {
    KvPlanOptions options;
    options.calibration = test::shared_path("data/calib/wiki.utf8");
    options.folder = scratch_.path();
    const auto plan = plan_kv(*model_, *KvCacheRecipe::parse(text)->mix, options);
    EXPECT_TRUE(plan) << text;
    return plan ? plan->recipe.text : "f16";
  }

  // Divergence from halves.
  double kl(const std::string& text) {
    const auto known = known_.find(text);
    if (known != known_.end()) return known->second;
    EvalOptions options;
    options.kv = *KvCacheRecipe::parse(text);
    options.max_windows = 3;
    const auto result = evaluate(*model_, model_.get(), ids_, options);
    EXPECT_TRUE(result) << text << ": " << (result ? "" : result.error().message);
    const double value = result ? result->kl_mean : 0;
    fmt::print("{:.5f}  {}\n", value, text);
    return known_[text] = value;
  }

  void calibrate(const std::vector<std::string>& texts) {
    std::vector<KvCacheRecipe> recipes;
    for (const std::string& text : texts) recipes.push_back(*KvCacheRecipe::parse(text));
    const auto set = fit_kv_tables(model_->files(), calibration_, recipes, {});
    ASSERT_TRUE(set && set->save(kv_tables_path(path_)));
  }

  test::ScratchFolder scratch_;
  std::string path_;
  std::unique_ptr<Model> model_;
  std::vector<Token> ids_;
  Corpus calibration_;
  std::map<std::string, double> known_;
};

// KIVI, KVQuant.
TEST_F(SlowKvMethods, KeysWantAScalePerChannelAndValuesOnePerToken) {
  EXPECT_LT(kl("kv(k=int(2, per=channel), v=f16)"), .8 * kl("kv(k=int(2), v=f16)"));
  EXPECT_LT(kl("kv(k=f16, v=int(2))"), .8 * kl("kv(k=f16, v=int(2, per=channel))"));
}

TEST_F(SlowKvMethods, KeysWantMoreThanValues) {
  EXPECT_LT(kl("kv(k=int(4, group=64), v=int(2, group=64))"),
            .5 * kl("kv(k=int(2, group=64), v=int(4, group=64))"));
}

// QuaRot.
TEST_F(SlowKvMethods, RotationHelpsAtFourBits) {
  EXPECT_LT(kl("kv(k=int(4, group=64), v=int(4, group=64), rotate=true)"),
            .8 * kl("kv(k=int(4, group=64), v=int(4, group=64))"));
}

// KVQuant: channels keep their ranges before RoPE.
TEST_F(SlowKvMethods, ChannelsAreBetterCodedBeforeRope) {
  EXPECT_LT(kl("kv(k=int(2, per=channel), v=f16, rope=read)"),
            .95 * kl("kv(k=int(2, per=channel), v=f16)"));
}

TEST_F(SlowKvMethods, KvquantGainsFromEveryPart) {
  const std::string rest = ", sinks=1, rope=read)";
  const std::string dense = "kv(k=nuq(2, outliers=0), v=nuq(2, outliers=0)" + rest;
  const std::string apart = "kv(k=nuq(2), v=nuq(2)" + rest;
  calibrate({"kvquant-4bit", "kvquant-3bit", "kvquant-2bit", dense, apart});
  EXPECT_LT(kl(apart), .9 * kl(dense));
  EXPECT_LT(kl("kvquant-2bit"), .98 * kl(apart));  // Q-Norm; .953 where gradients weigh
  EXPECT_LT(kl("kvquant-3bit"), .5 * kl("kvquant-2bit"));
  EXPECT_LT(kl("kvquant-4bit"), .5 * kl("kvquant-3bit"));
  // 2.57 bits against 2.5.
  EXPECT_LT(kl("kvquant-2bit"), .9 * kl("kv(k=int(2, per=channel, group=64), v=int(2, group=64))"));
}

TEST_F(SlowKvMethods, GearGainsFromEveryPart) {
  const double codes = kl("kv(k=int(2, per=channel, group=64), v=int(2, group=64))");
  EXPECT_LT(kl("gear-l-2bit"), .95 * codes);
  EXPECT_LT(kl("gear-2bit"), .9 * kl("gear-l-2bit"));
  EXPECT_LT(kl("gear-4bit"), .5 * kl("gear-2bit"));
}

// KVTuner: layers differ, and so do keys and values.
TEST_F(SlowKvMethods, APlanBeatsTheUniformCacheOfItsBits) {
  EXPECT_LT(kl(planned("auto:2.25")), .85 * kl("lloyd-2bit"));
  EXPECT_LT(kl(planned("auto:3.25")), .9 * kl("lloyd-3bit"));
  EXPECT_LT(kl(planned("auto:4.25")), kl("lloyd-4bit"));
}

// DecoQuant at 4 bits; at 2 bits it does not.
TEST_F(SlowKvMethods, AnotherBasisHelpsAtFourBits) {
  EXPECT_LT(kl("decoquant-4bit"), kl("kv(k=int(4, group=64), v=int(4, group=64))"));
}

}  // namespace
}  // namespace quern
