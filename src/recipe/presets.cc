// SPDX-License-Identifier: Apache-2.0
#include "recipe/presets.h"

namespace quern {

std::span<const RecipePreset> recipe_presets() {
  static const RecipePreset rows[] = {
#include "recipe_presets.inc"  // made by CMakeLists.txt from recipes/*.recipe
  };
  return rows;
}

const RecipePreset* find_recipe_preset(std::string_view name) {
  for (const RecipePreset& preset : recipe_presets()) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

}  // namespace quern
