// SPDX-License-Identifier: Apache-2.0
// Coded caches in the bundled model: what every recipe must keep.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "calib/kv_fit.h"
#include "model/model.h"
#include "scratch.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
constexpr const char* kRecipes[] = {
    "bf16",
    "f16",
    "q8",
    "q4",
    "quarot-kv4",
    "kivi-4bit",
    "kivi-2bit",
    "lloyd-3bit",
    "kv(k=int(3, per=channel), v=f16, window=10)",
    "gear-2bit",
    "kvquant-2bit",
    "decoquant-4bit",
    "kv(k=deco(int(3)), v=deco(gear(int(3)), block=8), sinks=1, rope=read)",
    "kv(k=nuq(3), v=nuq(4, outliers=0), rope=read)",
    "kv(k=int(3, per=channel), v=gear(int(3), rank=1), window=20, sinks=2, rope=read)",
    "kv(k=qaq(30), v=qaq(20, low=0, rows=3), rotate=true)",
    "kv(k=int(3, per=channel), v=qaq(10, again=false), window=20, sinks=1)",
    "kivi-2bit @ layers[0:1] | kvquant-2bit @ layers[2:3] | q4 @ layers[3:4]"};

// The bundled model with tables of caches that are fitted to it; made once.
const std::string& with_tables() {
  static const test::ScratchFolder folder;
  static const std::string path = [] {
    const std::string copy = folder / "tiny";
    std::filesystem::copy(kTiny, copy);
    std::vector<KvCacheRecipe> recipes;
    for (const char* text : kRecipes) {
      KvCacheRecipe recipe = *KvCacheRecipe::parse(text);
      if (recipe.has_tables()) recipes.push_back(std::move(recipe));
    }
    Corpus corpus;
    for (Token seed = 0; seed < 4; ++seed) {
      std::vector<Token>& sample = corpus.samples.emplace_back();
      for (Token id = 0; id < 200; ++id) sample.push_back(5 + (id + seed) * 41 % 4000);
    }
    const auto set = fit_kv_tables(**ModelFiles::open(copy), corpus, recipes, {});
    EXPECT_TRUE(set && set->save(kv_tables_path(copy)));
    return copy;
  }();
  return path;
}

class CodedCache : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    model_ = *Model::open(with_tables(), Activations::kExact);
    for (Token id = 0; id < 300; ++id) ids_.push_back(5 + id * 37 % 4000);
  }

  KvCache cache(std::string_view text, int64_t room = 300) const {
    return *model_->make_cache(room, *KvCacheRecipe::parse(text));
  }

  // The hidden rows of all tokens, in calls of n.
  Matrix<float> run(KvCache cache, int64_t n) const {
    const auto total = static_cast<int64_t>(ids_.size());
    Matrix<float> hidden(total, model_->desc().d_model);
    for (int64_t i = 0; i < total; i += n) {
      const int64_t count = std::min(n, total - i);
      const std::span<const Token> part(ids_.data() + i, static_cast<size_t>(count));
      EXPECT_TRUE(model_->forward(cache, part, hidden.view().row_range(i, count)));
    }
    return hidden;
  }

  std::unique_ptr<Model> model_;
  std::vector<Token> ids_;
};

TEST_P(CodedCache, HowATextIsCutDoesNotShow) {
  const Matrix<float> whole = run(cache(GetParam()), 300);
  EXPECT_EQ(run(cache(GetParam()), 1), whole);
  EXPECT_EQ(run(cache(GetParam()), 97), whole);
}

TEST_P(CodedCache, DiffersFromHalvesByLittle) {
  const Matrix<float> plain = run(cache("f16"), 300), coded = run(cache(GetParam()), 300);
  double error = 0, energy = 0;
  for (int64_t i = 0; i < plain.rows() * plain.cols(); ++i) {
    error += std::pow(static_cast<double>(plain.data()[i]) - coded.data()[i], 2);
    energy += static_cast<double>(plain.data()[i]) * plain.data()[i];
  }
  EXPECT_EQ(error > 0, std::string_view(GetParam()) != "f16");
  EXPECT_LT(error, .2 * energy);
}

TEST_P(CodedCache, SequencesTogetherAreSequencesAlone) {
  std::vector<KvCache> together, alone;
  for (const int64_t length : {1, 64, 130}) {
    for (std::vector<KvCache>* caches : {&together, &alone}) {
      caches->push_back(cache(GetParam()));
      Matrix<float> hidden(length, model_->desc().d_model);
      const std::span<const Token> part(ids_.data(), static_cast<size_t>(length));
      ASSERT_TRUE(model_->forward(caches->back(), part, hidden.view()));
    }
  }
  const std::vector<Token> next = {7, 8, 9};
  for (int step = 0; step < 3; ++step) {
    Matrix<float> hidden(3, model_->desc().d_model), one(1, model_->desc().d_model);
    ASSERT_TRUE(model_->step_batch(together, next, hidden.view()));
    for (size_t s = 0; s < 3; ++s) {
      ASSERT_TRUE(model_->forward(alone[s], {&next[s], 1}, one.view()));
      for (int64_t j = 0; j < one.cols(); ++j) {
        ASSERT_EQ(hidden(static_cast<int64_t>(s), j), one(0, j)) << GetParam() << " " << s;
      }
    }
  }
}

// Two ways to go on from one prefix: both as if each had been read alone.
TEST_P(CodedCache, ForksAreAsIfAlone) {
  const std::span<const Token> all = ids_, prefix = all.first(130);
  KvCache one = cache(GetParam());
  Matrix<float> hidden(130, model_->desc().d_model), fresh(170, model_->desc().d_model);
  ASSERT_TRUE(model_->forward(one, prefix, hidden.view()));
  std::vector<KvCache> caches;
  caches.push_back(one.fork());
  caches.push_back(std::move(one));
  for (size_t s = 0; s < 2; ++s) {
    const std::span<const Token> rest = all.subspan(130 + 40 * s, 40);
    std::vector<Token> text(prefix.begin(), prefix.end());
    text.insert(text.end(), rest.begin(), rest.end());
    KvCache alone = cache(GetParam());
    ASSERT_TRUE(model_->forward(alone, text, fresh.view()));
    ASSERT_TRUE(model_->forward(caches[s], rest, hidden.view().row_range(0, 40)));
    for (int64_t i = 0; i < 40 * hidden.cols(); ++i) {
      ASSERT_EQ(hidden.data()[i], fresh.row(130)[i]) << GetParam() << " " << s;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Recipes, CodedCache, ::testing::ValuesIn(kRecipes));

using PlainCache = CodedCache;

TEST_F(PlainCache, LayersNamedOneByOneAreAllLayers) {
  EXPECT_EQ(run(cache("q4 @ layers[0:2] | q4 @ layers[2:3] | q4"), 300), run(cache("q4"), 300));
  EXPECT_EQ(run(cache("q8 @ all-all"), 300), run(cache("f16"), 300));
}

TEST_F(PlainCache, AWindowWiderThanTheTextCodesNothing) {
  EXPECT_EQ(run(cache("kv(k=int(2), v=int(2), window=300)"), 60), run(cache("f16"), 300));
}

TEST_F(PlainCache, BitsThatGoByAttentionAreThoseOfTheErrorAllowed) {
  EXPECT_EQ(run(cache("kv(k=qaq(30), v=qaq(30), window=300)"), 60), run(cache("f16"), 300));
  double before = 9;
  for (const int error : {1, 10, 30, 100, 1000}) {
    const std::string codec = fmt::format("qaq({}, low=0, high=8)", error);
    KvCache kept = cache(fmt::format("kv(k={0}, v={0})", codec));
    Matrix<float> hidden(300, model_->desc().d_model);
    ASSERT_TRUE(model_->forward(kept, ids_, hidden.view()));
    EXPECT_LT(kept.coded_bits(), before);
    before = kept.coded_bits();
    EXPECT_LT(before, kept.held_bits());
    EXPECT_FALSE(kept.truncate(290));
    const KvCache own = kept.copy();
    EXPECT_EQ(own.coded_bits(), before);
  }
  EXPECT_LT(before, 2);  // all but the newest page: a centre, a width, outliers
}

TEST_F(PlainCache, TablesThatAreMissingOrOfAnotherModelAreAskedFor) {
  const auto refusal = [](const Model& model, const char* text) {
    const auto cache = model.make_cache(10, *KvCacheRecipe::parse(text));
    return cache ? std::string() : cache.error().message;
  };
  EXPECT_EQ(refusal(*model_, "kvquant-2bit"), "");
  EXPECT_NE(refusal(*model_, "kvquant-4bit").find("calibrate-kv"), std::string::npos);
  EXPECT_NE(refusal(**Model::open(kTiny), "kvquant-2bit").find("calibrate-kv"), std::string::npos);
  const test::ScratchFolder folder;
  const std::string other = folder / "other", config = other + "/config.json";
  std::filesystem::copy(with_tables(), other);
  std::string text = *read_file(config);
  ASSERT_TRUE(write_file_atomically(config, text.replace(text.find('{'), 1, "{\"note\": 1, ")));
  const std::string message = refusal(**Model::open(other), "kvquant-2bit");
  EXPECT_NE(message.find("another model"), std::string::npos) << message;
}

TEST_F(PlainCache, GoesBackOrSaysWhyNot) {
  KvCache kept = cache("kivi-2bit");
  Matrix<float> hidden(50, model_->desc().d_model);
  for (size_t i = 0; i < ids_.size(); i += 50) {
    ASSERT_TRUE(model_->forward(kept, std::span(ids_).subspan(i, 50), hidden.view()));
  }
  EXPECT_FALSE(kept.truncate(20));
  EXPECT_EQ(kept.length(), 300);
  ASSERT_TRUE(kept.truncate(0));
  EXPECT_EQ(kept.length(), 0);
}

}  // namespace
}  // namespace quern
