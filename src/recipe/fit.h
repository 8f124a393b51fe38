// SPDX-License-Identifier: Apache-2.0
// Fits the transforms of a recipe to the layers of a model, one layer after another, and keeps what
// was fitted in the journal.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "calib/streams.h"
#include "formats/safetensors.h"
#include "model/model_files.h"
#include "recipe/recipe.h"

namespace quern {

class Fitting {
 public:
  // All must outlive this. `basis` holds what was planned, by stages in the recipe's order; fitted
  // operators are added to it.
  Fitting(const ModelFiles& files, const Recipe& recipe, uint64_t seed, BasisChange& basis)
      : files_(files), recipe_(recipe), seed_(seed), basis_(basis) {}

  // Fits every fitted transform to a layer whose input the source stream holds, each in the basis
  // of the stages before it. `proceed` false: cancelled.
  Status fit(int layer, const Streams& streams, int64_t n_tokens,
             const std::function<bool()>& proceed, std::vector<std::string>& notes);
  // What was fitted to a layer, without the data of BasisChange::tensors; and back again, from a
  // journal that something else may have damaged.
  Json report(int layer) const { return basis_.fitted_json(layer); }
  Status restore(int layer, const Json& report, const SafetensorsFile& file);

 private:
  const ModelFiles& files_;
  const Recipe& recipe_;
  uint64_t seed_;
  BasisChange& basis_;
};

}  // namespace quern
