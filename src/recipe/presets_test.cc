// SPDX-License-Identifier: Apache-2.0
#include "recipe/presets.h"

#include <gtest/gtest.h>

#include "model/model_files.h"
#include "recipe/recipe.h"

namespace quern {
namespace {

TEST(Presets, EveryOneSaysWhatItIsAndSuitsTheBundledModel) {
  const auto model = ModelFiles::open(QUERN_SOURCE_DIR "/models/tiny");
  ASSERT_TRUE(model);
  EXPECT_GT(recipe_presets().size(), 20u);
  for (const RecipePreset& preset : recipe_presets()) {
    SCOPED_TRACE(preset.name);
    EXPECT_FALSE(preset.summary().empty());
    const auto recipe = Recipe::load(preset.name);
    ASSERT_TRUE(recipe) << recipe.error().message;
    EXPECT_TRUE(recipe->check((*model)->desc()));
    EXPECT_TRUE(Recipe::parse(recipe->canonical()));
  }
}

TEST(Presets, ANameIsNoStage) {
  EXPECT_EQ(find_recipe_preset("quern-2bit")->name, "quern-2bit");
  EXPECT_EQ(find_recipe_preset("quern-99bit"), nullptr);
  EXPECT_FALSE(Recipe::load("quern-99bit"));
}

}  // namespace
}  // namespace quern
