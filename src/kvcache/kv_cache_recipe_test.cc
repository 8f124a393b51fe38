// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache_recipe.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

KvCacheRecipe recipe_of(std::string_view text) {
  auto recipe = KvCacheRecipe::parse(text);
  EXPECT_TRUE(recipe) << text << ": " << (recipe ? "" : recipe.error().message);
  return recipe ? *std::move(recipe) : KvCacheRecipe();
}

ModelDesc model_of(const std::vector<int64_t>& n_kv_heads) {
  ModelDesc model;
  for (const int64_t n : n_kv_heads) {
    AttentionDesc& attention = model.layers.emplace_back().attention;
    attention.n_heads = attention.n_kv_heads = n;
    attention.d_head = 64;
  }
  return model;
}

TEST(KvCacheRecipe, ALayerIsKeptAsTheFirstThatNamesIt) {
  const KvCacheRecipe recipe =
      recipe_of("q8 @ layers[0:1]+layers[3:4] | kivi-2bit @ all-layers[4:6] | f32 @ layers[5:6]");
  const std::string eight = KvRecipe::parse("q8")->text, two = KvRecipe::parse("kivi-2bit")->text;
  const std::vector<std::string> kept = {eight, two, two, eight, "f16", "f32", two};
  for (size_t layer = 0; layer < kept.size(); ++layer) {
    EXPECT_EQ(recipe.of(layer)->text, kept[layer]) << layer;
  }
  EXPECT_FALSE(recipe.is_plain());
  EXPECT_TRUE(recipe_of("bf16 @ layers[0:1] | f32").is_plain());
}

TEST(KvCacheRecipe, PrintedFormParsesBack) {
  for (const char* text :
       {"f16", "q4", "kivi-2bit @ layers[0:2] | q8", "bf16 @ layers[2:3]|kv(evict=h2o(64)) @ all",
        "auto:2.5", "auto(3)", "auto(2.25, q4, kv(k=int(2), v=lloyd(3), window=64))"}) {
    const KvCacheRecipe recipe = recipe_of(text);
    EXPECT_EQ(recipe_of(recipe.text).text, recipe.text) << text;
  }
  EXPECT_EQ(recipe_of("auto:2.5").text, "auto(2.5)");
  EXPECT_EQ(recipe_of("lloyd-2bit @ layers[1:3]").text,
            "kv(lloyd(2), lloyd(2), rotate=true) @ layers[1:3]");
}

TEST(KvCacheRecipe, NeighboursKeptAlikeShareAStage) {
  const KvRecipe four = *KvRecipe::parse("q4"), eight = *KvRecipe::parse("q8");
  EXPECT_EQ(KvCacheRecipe::of_layers({four, four, four}).text, four.text);
  const KvCacheRecipe mixed = KvCacheRecipe::of_layers({four, four, eight, four});
  EXPECT_EQ(mixed.text, fmt::format("{0} @ layers[0:2] | {1} @ layers[2:3] | {0} @ layers[3:4]",
                                    four.text, eight.text));
  const KvCacheRecipe parsed = recipe_of(mixed.text);
  for (size_t layer = 0; layer < 4; ++layer) {
    EXPECT_EQ(parsed.of(layer)->text, (layer == 2 ? eight : four).text);
  }
}

TEST(KvCacheRecipe, BitsAreOfAllNumbers) {
  const ModelDesc model = model_of({1, 3});
  // 9 bits of a quarter of the numbers, 2.25 of the others.
  const KvCacheRecipe recipe = recipe_of("q8 @ layers[0:1] | lloyd-2bit");
  EXPECT_DOUBLE_EQ(recipe.bits(model), (9 + 3 * 2.25) / 4);
  EXPECT_DOUBLE_EQ(recipe_of("q8 @ layers[0:1]").bits(model), (9 + 3 * 16.0) / 4);
}

TEST(KvCacheRecipe, ModelsWithoutTheLayersAreRefused) {
  EXPECT_TRUE(recipe_of("q8 @ layers[0:2]").check(model_of({1, 1})));
  const Status past = recipe_of("q8 @ layers[1:3]").check(model_of({1, 1}));
  ASSERT_FALSE(past);
  EXPECT_NE(past.error().message.find("layers[1:3] reaches past the model's 2 layers"),
            std::string::npos);
  EXPECT_FALSE(recipe_of("auto(3)").check(model_of({1, 1})));
}

TEST(KvCacheRecipe, WrongTextsSayWhatIsValid) {
  for (const auto& [text, mention] : std::vector<std::pair<const char*, const char*>>{
           {"q8 @ attn", "no selector 'attn'"},
           {"q8 @ layers", "no selector 'layers'"},
           {"q8 @ all[0:2]", "no selector 'all'"},
           {"q8 @ layers[2:2]", "range is empty"},
           {"lru @ layers[0:1]", "no cache 'lru'"},
           {"auto", "auto takes bits"},
           {"auto:x", "auto takes bits"},
           {"auto(0)", "auto takes bits"},
           {"auto(40)", "up to 32"},
           {"auto(3, bits=4)", "no parameter 'bits'"},
           {"auto(3, lru)", "no cache 'lru'"},
           {"auto(3) @ layers[0:1]", "stands alone"},
           {"q8 @ layers[0:1] | auto(3)", "stands alone"},
           {"", "expected a stage"}}) {
    const auto recipe = KvCacheRecipe::parse(text);
    ASSERT_FALSE(recipe) << text;
    EXPECT_NE(recipe.error().message.find(mention), std::string::npos) << recipe.error().message;
  }
}

}  // namespace
}  // namespace quern
