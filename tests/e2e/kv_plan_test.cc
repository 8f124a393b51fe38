// SPDX-License-Identifier: Apache-2.0
// Caches planned for the bundled model.
#include "allocate/kv_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "allocate/kv_measure.h"
#include "eval/divergence.h"
#include "scratch.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const std::string kText = QUERN_SOURCE_DIR "/models/evaluation.txt";

class KvPlans : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = *Model::open(kTiny);
    options_.calibration = kText;
    options_.corpus = {.n_samples = 2, .length = 160};
    options_.folder = folder().path();
  }

  // Costs are measured once for all tests.
  static const test::ScratchFolder& folder() {
    static const test::ScratchFolder folder;
    return folder;
  }

  Result<KvPlan> plan(const std::string& text) {
    const auto recipe = KvCacheRecipe::parse(text);
    EXPECT_TRUE(recipe && recipe->mix) << text;
    return plan_kv(*model_, *recipe->mix, options_);
  }

  std::unique_ptr<Model> model_;
  KvPlanOptions options_;
};

TEST_F(KvPlans, KeepTheirBitsAndLoseLessWithMore) {
  double before = INFINITY;
  for (const double bits : {1.25, 1.8, 2.25, 2.5, 3.0, 4.3, 6.0, 9.0, 16.0}) {
    const auto made = plan(fmt::format("auto({})", bits));
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_LE(made->bits, bits);
    EXPECT_GT(made->bits, std::min(bits, 9.0) - .5);  // a budget is used
    EXPECT_DOUBLE_EQ(made->bits, made->recipe.bits(model_->desc()));
    EXPECT_LE(made->kl, before);
    EXPECT_LE(made->kl, made->uniform_kl);
    EXPECT_LE(made->uniform_bits, bits);
    before = made->kl;
    EXPECT_EQ(KvCacheRecipe::parse(made->recipe.text)->text, made->recipe.text);
    EXPECT_TRUE(model_->make_cache(64, made->recipe));
  }
}

TEST_F(KvPlans, AMenuOfOneIsThatOneAndTooFewBitsAreRefused) {
  const auto one = plan("auto(5, q4)");
  ASSERT_TRUE(one) << one.error().message;
  EXPECT_EQ(one->recipe.text, KvRecipe::parse("q4")->text);
  EXPECT_EQ(one->uniform, one->recipe.text);
  EXPECT_EQ(one->kl, one->uniform_kl);
  const auto few = plan("auto(4.9, q4)");
  ASSERT_FALSE(few);
  EXPECT_NE(few.error().message.find("4.9 bits are too few, the least of the menu are 5.000"),
            std::string::npos)
      << few.error().message;
  EXPECT_FALSE(plan("auto(16, f16)"));
  EXPECT_FALSE(plan("auto(16, kv(k=qaq(10), v=int(4)))"));
  EXPECT_FALSE(plan("auto(16, kv(k=int(4), v=int(4), evict=snapkv(64)))"));
}

// Keys of one entry may go with values of another where all else is alike.
TEST_F(KvPlans, KeysAndValuesAreChosenApart) {
  const auto made = plan("auto(4, kv(k=int(2, group=64), v=int(4, group=64)))");
  ASSERT_FALSE(made && made->bits > 3.5);
  const auto mixed = plan(
      "auto(3.5, kv(k=int(2, group=64), v=int(2, group=64)), "
      "kv(k=int(4, group=64), v=int(4, group=64)))");
  ASSERT_TRUE(mixed) << mixed.error().message;
  EXPECT_DOUBLE_EQ(mixed->bits, 3.5);
  const auto values = plan("auto(3.5, kv(k=int(2, group=64), v=int(4, group=64)))");
  ASSERT_TRUE(values);
  EXPECT_LT(mixed->kl, values->kl);
}

TEST_F(KvPlans, CostsAreKeptBetweenCallsAndExtended) {
  const test::ScratchFolder scratch;
  options_.folder = scratch / "deep";
  int n_asked = 0;
  options_.proceed = [&](double, std::string_view) { return ++n_asked > 0; };
  const auto first = plan("auto(6, q4, q8)");
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_GT(n_asked, 0);
  n_asked = 0;
  EXPECT_EQ(plan("auto(6, q4, q8)")->recipe.text, first->recipe.text);
  EXPECT_TRUE(plan("auto(9, q8)"));
  EXPECT_EQ(n_asked, 0);
  EXPECT_TRUE(plan("auto(3, lloyd-2bit)"));  // another entry is measured, into the same file
  EXPECT_GT(n_asked, 0);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(options_.folder), {}), 1);
  options_.proceed = [](double, std::string_view) { return false; };
  const auto stopped = plan("auto(3, lloyd-3bit)");
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().kind, ErrorKind::kCancelled);
}

// A probe's divergence is that of a run of the whole model with this one layer kept so.
TEST_F(KvPlans, ProbesMeasureWhatTheModelDoes) {
  const auto tokenizer = *Tokenizer::open(kTiny);
  const Corpus corpus =
      *corpus_from_text(model_->desc(), *tokenizer, test::content_of(kText), "", options_.corpus);
  const KvRecipe coarse = *KvRecipe::parse("kv(k=int(2), v=f16, rotate=true)");
  const std::vector<KvVariant> variants = {
      {1, coarse, true}, {1, coarse, false}, {2, KvRecipe(), true}};
  const auto costs = measure_kv(*model_, corpus, variants, [](double) { return true; });
  ASSERT_TRUE(costs) << costs.error().message;
  double sum = 0;
  int64_t n = 0;
  for (const std::vector<Token>& sample : corpus.samples) {
    Matrix<float> logits[2];
    const std::string texts[] = {"f16", coarse.text + " @ layers[1:2]"};
    for (size_t i = 0; i < 2; ++i) {
      const auto length = static_cast<int64_t>(sample.size());
      KvCache cache = *model_->make_cache(length, *KvCacheRecipe::parse(texts[i]));
      Matrix<float> hidden(length, model_->desc().d_model);
      ASSERT_TRUE(model_->forward(cache, sample, hidden.view()));
      logits[i] = Matrix<float>(length, model_->desc().n_vocab);
      model_->logits(hidden.view(), logits[i].view());
    }
    std::vector<double> kl(sample.size());
    divergences(logits[0], logits[1], kl);
    for (const double one : kl) sum += one;
    n += static_cast<int64_t>(sample.size());
  }
  EXPECT_DOUBLE_EQ((*costs)[0].kl, sum / static_cast<double>(n));
  EXPECT_GT((*costs)[0].kl, 0);
  EXPECT_EQ((*costs)[1].kl, -1);
  EXPECT_GT((*costs)[0].loss, 0);
  EXPECT_EQ((*costs)[0].loss, (*costs)[1].loss);
  EXPECT_EQ((*costs)[2].loss, 0);
  EXPECT_EQ((*costs)[2].kl, 0);
}

}  // namespace
}  // namespace quern
