// SPDX-License-Identifier: Apache-2.0
#include "recipe/recipe.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

// Which of two layers' matrices the first stage takes: "q0 down1".
std::string taken(std::string_view selector) {
  const auto recipe = Recipe::parse(fmt::format("rtn(int(4)) @ {}", selector));
  EXPECT_TRUE(recipe.has_value()) << (recipe ? "" : recipe.error().message);
  std::string names;
  for (int layer = 0; layer < 2; ++layer) {
    for (const Role role : {Role::kQ, Role::kK, Role::kV, Role::kO, Role::kGate, Role::kUp,
                            Role::kDown, Role::kRouter, Role::kAttnNorm}) {
      if (recipe->solver_for({}, {role, layer, -1}) == nullptr) continue;
      names += fmt::format("{}{}{}", names.empty() ? "" : " ", role_name(role), layer);
    }
  }
  return names;
}

TEST(Recipe, ARangeKeepsASelectorToSomeLayers) {
  EXPECT_EQ(taken("down"), "down0 down1");
  EXPECT_EQ(taken("down[1:2]"), "down1");
  EXPECT_EQ(taken("down[0:2]"), "down0 down1");
  EXPECT_EQ(taken("layers[1:2]"), "q1 k1 v1 o1 gate1 up1 down1");
  EXPECT_EQ(taken("all[1:2]"), taken("layers[1:2]"));
  EXPECT_EQ(taken("attn[0:1]+up[1:2]-k[0:2]"), "q0 v0 o0 up1");
}

}  // namespace
}  // namespace quern
