// SPDX-License-Identifier: Apache-2.0
// A model and a recipe that has been checked against it, with the basis that its transforms plan:
// what is known before any weight is read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/fused_source.h"
#include "model/model_files.h"
#include "recipe/recipe.h"

namespace quern {

struct Prepared {
  std::unique_ptr<ModelFiles> files;
  Recipe recipe;
  BasisChange basis;  // fitted operators are still missing
  std::unique_ptr<FusedSource> fused;
  std::vector<std::string> notes;

  const ModelDesc& source_desc() const { return files->desc(); }
};

// `recipe` as Recipe::load takes it. Fails on a model that is already compressed. The result is
// held by pointer because its parts point at each other.
Result<std::unique_ptr<Prepared>> prepare(const std::string& model, const std::string& recipe,
                                          uint64_t seed);

}  // namespace quern
