// SPDX-License-Identifier: Apache-2.0
// The bundled model over caches that keep only some of a text, with parameters that no training
// made: a table for all that such caches may need.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "kvcache/kv_tables.h"
#include "model/model.h"
#include "scratch.h"

namespace quern::test {

// Gaussian numbers of a deviation.
inline std::vector<float> gaussian_table(const Shape& shape, double deviation, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(*element_count(shape)));
  for (float& value : values) value = static_cast<float>(deviation * random.gaussian());
  return values;
}

// Maps of 12 features over 16 hidden values, those of queries one for all heads; and linear
// decisions of which about half join.
inline void put_trained(size_t layer, const KvHeads& heads, KvTableSet& tables) {
  constexpr int64_t kHidden = 16, kFeatures = 12;
  const int64_t d = heads.d_head, n = heads.n_kv_heads;
  uint64_t seed = 100 * layer;
  const auto put = [&](const char* name, const Shape& shape, double deviation) {
    tables.put(layer, name, shape, gaussian_table(shape, deviation, ++seed));
  };
  put("less.query_in", {1, kHidden, d}, .2);
  put("less.query_out", {1, kFeatures, kHidden}, .5);
  put("less.key_in", {n, kHidden, d}, .2);
  put("less.key_out", {n, kFeatures, kHidden}, .5);
  put("less.key_mix", {n, kFeatures, kFeatures}, .3);
  put("less.key_scale", {n, kFeatures}, 1);
  put("less.key_mix_scale", {n, kFeatures}, 1);
  put("dmc.merge", {n, d + 1}, 1);
  put("dmc.weight", {heads.n_heads, d + 1}, .3);
}

// Writes tables of a model beside it, those of each layer as `put_layer` puts them.
template <class PutLayer>
void write_tables(const std::string& path, const PutLayer& put_layer) {
  const auto files = *ModelFiles::open(path);
  KvTableSet tables;
  tables.model = files->digest();
  for (size_t i = 0; i < files->desc().layers.size(); ++i) {
    const AttentionDesc& a = files->desc().layers[i].attention;
    put_layer(i, KvHeads{a.n_heads, a.n_kv_heads, a.d_head}, tables);
  }
  const Status saved = tables.save(kv_tables_path(path));
  ASSERT_TRUE(saved) << saved.error().message;
}

class CacheRun : public ::testing::Test {
 protected:
  static constexpr int64_t kLength = 210;
  void SetUp() override {
    std::filesystem::copy(QUERN_SOURCE_DIR "/models/tiny", path_);
    retrain(put_trained);
    for (Token id = 0; id < kLength; ++id) ids_.push_back(5 + id * 37 % 4000);
  }
  template <class PutLayer>
  void retrain(const PutLayer& put_layer) {
    write_tables(path_, put_layer);
    model_ = *Model::open(path_, Activations::kExact);
  }
  KvCache cache(std::string_view text) const {
    const auto recipe = KvCacheRecipe::parse(text);
    EXPECT_TRUE(recipe) << text << ": " << recipe.error().message;
    auto made = model_->make_cache(kLength, *recipe);
    EXPECT_TRUE(made) << text << ": " << made.error().message;
    return *std::move(made);
  }
  // Why the text or its cache is refused; empty: it is not.
  std::string problem_of(const char* text) const {
    const auto recipe = KvRecipe::parse(text);
    if (!recipe) return recipe.error().message;
    const auto made = model_->make_cache(kLength, *recipe);
    return made ? std::string() : made.error().message;
  }
  void expect_problem(const char* text, const char* mention) const {
    EXPECT_NE(problem_of(text).find(mention), std::string::npos) << problem_of(text);
  }
  // Hidden rows of the tokens from where the cache ends up to `end`, in calls of n.
  Matrix<float> run(KvCache& cache, int64_t end, int64_t n) const {
    const int64_t begin = cache.length();
    Matrix<float> hidden(end - begin, model_->desc().d_model);
    for (int64_t i = begin; i < end; i += n) {
      const int64_t count = std::min(n, end - i);
      const std::span<const Token> part(ids_.data() + i, static_cast<size_t>(count));
      EXPECT_TRUE(model_->forward(cache, part, hidden.view().row_range(i - begin, count)));
    }
    return hidden;
  }
  Matrix<float> run(std::string_view text, int64_t n) const {
    KvCache fresh = cache(text);
    return run(fresh, kLength, n);
  }

  ScratchFolder folder_;
  std::string path_ = folder_ / "tiny";
  std::unique_ptr<Model> model_;
  std::vector<Token> ids_;
};

}  // namespace quern::test
