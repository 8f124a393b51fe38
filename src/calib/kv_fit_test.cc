// SPDX-License-Identifier: Apache-2.0
#include "calib/kv_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/random.h"
#include "calib/gradients.h"
#include "model/model_test_util.h"

namespace quern {
namespace {

using test::fixture_path;

constexpr int64_t kSinks = 2;
constexpr std::string_view kCodec = "nuq(2)";

KvCacheRecipe recipe() {
  return *KvCacheRecipe::parse(
      fmt::format("kv(k={0}, v={0}, sinks={1}, rope=read)", kCodec, kSinks));
}

Corpus corpus_of(const ModelDesc& model) {
  Corpus corpus;
  Random random(7);
  for (const size_t length : {40U, 33U, 25U}) {
    std::vector<Token>& sample = corpus.samples.emplace_back();
    while (sample.size() < length) {
      sample.push_back(static_cast<Token>(random.below(static_cast<uint64_t>(model.n_vocab))));
    }
  }
  return corpus;
}

// Rows of all samples but the sinks, and their squared gradients, layer by layer.
class Rows final : public GradientVisitor {
 public:
  struct Side {
    std::vector<float> x, weights;
  };
  void linear(const WeightId&, MatrixView<const float>, MatrixView<const float>) override {}
  void heads(int layer, const KeysAndValues& x, const KeysAndValues& dx) override {
    add(x.k, dx.k, of[{layer, KvSide::kKeys}]);
    add(x.v, dx.v, of[{layer, KvSide::kValues}]);
  }
  std::map<std::pair<int, KvSide>, Side> of;

 private:
  static void add(MatrixView<const float> x, MatrixView<const float> dx, Side& side) {
    for (int64_t i = kSinks; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        side.x.push_back(x(i, j));
        side.weights.push_back(dx(i, j) * dx(i, j));
      }
    }
  }
};

TEST(KvFit, TablesAreThoseOfNumbersWeighedByTheirSquaredGradients) {
  for (const char* name : {"llama-llama3", "llama-yarn", "gpt_neox"}) {
    const auto files = *ModelFiles::open(fixture_path(name));
    const ModelDesc& model = files->desc();
    const Corpus corpus = corpus_of(model);
    const std::vector<KvCacheRecipe> recipes = {recipe()};
    KvFitOptions options;
    options.seed = 3;
    const auto set = fit_kv_tables(*files, corpus, recipes, options);
    ASSERT_TRUE(set) << name << ": " << set.error().message;
    Rows rows;
    GradientOptions gradients;
    gradients.seed = 3;
    const EndWeights ends = *files->ends();
    const auto load = [&](int layer) { return files->layer(layer); };
    ASSERT_TRUE(visit_gradients(model, ends, load, corpus, gradients, rows));
    EXPECT_EQ(rows.of.size(), 2 * model.layers.size());
    const KvRecipe& kept = *recipes[0].of(0);
    for (const auto& [key, side] : rows.of) {
      const AttentionDesc& a = model.layers[static_cast<size_t>(key.first)].attention;
      const int64_t width = a.n_kv_heads * a.d_head, n = std::ssize(side.x) / width;
      EXPECT_EQ(n, corpus.n_tokens() - 3 * kSinks);
      const KvFitRows fit{key.second, a.n_kv_heads, a.d_head, MatrixView(side.x.data(), n, width),
                          MatrixView(side.weights.data(), n, width)};
      const char* word = key.second == KvSide::kKeys ? "keys" : "values";
      const auto table = set->find(static_cast<size_t>(key.first),
                                   fmt::format("{}.{}", word, kept.keys->spec()), 1);
      ASSERT_TRUE(table) << name << ": " << table.error().message;
      EXPECT_EQ((*table)->values, *kept.keys->fit(fit)) << name << " " << key.first << " " << word;
    }
  }
}

TEST(KvFit, QueriesWeighChannelsOnly) {
  const auto files = *ModelFiles::open(fixture_path("llama-yarn"));
  const Corpus corpus = corpus_of(files->desc());
  const std::vector<KvCacheRecipe> recipes = {recipe()};
  const auto by = [&](KvWeighing weighing) {
    KvFitOptions options;
    options.weighing = weighing;
    const auto set = fit_kv_tables(*files, corpus, recipes, options);
    const std::string name = fmt::format("{}.{}", "keys", recipes[0].of(0)->keys->spec());
    return (*set->find(1, name, 1))->values;
  };
  const std::vector<float> queries = by(KvWeighing::kQueries),
                           gradients = by(KvWeighing::kGradients);
  // The ranges of channels are of the text alone; the levels are not.
  constexpr size_t kHead = 4 + 2;  // levels, gain, shift
  ASSERT_EQ(queries.size(), gradients.size());
  EXPECT_TRUE(std::equal(queries.begin() + kHead, queries.end(), gradients.begin() + kHead));
  EXPECT_FALSE(std::equal(queries.begin(), queries.begin() + kHead, gradients.begin()));
}

TEST(KvFit, StopsWhenItIsTold) {
  const auto files = *ModelFiles::open(fixture_path("llama-yarn"));
  const std::vector<KvCacheRecipe> recipes = {recipe()};
  for (const KvWeighing weighing : {KvWeighing::kGradients, KvWeighing::kQueries}) {
    KvFitOptions options;
    options.weighing = weighing;
    options.proceed = [](double done) { return done < .5; };
    const auto set = fit_kv_tables(*files, corpus_of(files->desc()), recipes, options);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().kind, ErrorKind::kCancelled);
  }
}

}  // namespace
}  // namespace quern
