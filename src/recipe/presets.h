// SPDX-License-Identifier: Apache-2.0
// Recipes known by name: the files of recipes/, which the build puts into the program. The first
// line of a file, a comment, says what it is.
#pragma once

#include <span>
#include <string_view>

namespace quern {

struct RecipePreset {
  std::string_view name;  // "quern-2bit"
  std::string_view text;  // as a .recipe file

  std::string_view summary() const {
    const std::string_view line = text.substr(0, text.find('\n'));
    return line.starts_with("# ") ? line.substr(2) : std::string_view();
  }
};

std::span<const RecipePreset> recipe_presets();  // in the order of their names
const RecipePreset* find_recipe_preset(std::string_view name);

}  // namespace quern
