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
#include "recipe/journal.h"
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
  // Before the streams exist: where a sliced stream begins, from the original's embedding.
  Status fit_start(const Corpus& corpus, std::vector<std::string>& notes);
  // The directions that a layer's fit (-1: the start) keeps, which the journal alone holds.
  std::vector<OutputTensor> slices(int layer) const;
  // What was fitted to a layer, without the data of BasisChange::tensors; and back again, from a
  // journal that something else may have damaged.
  Json report(int layer) const { return basis_.fitted_json(layer); }
  Status restore(int layer, const Json& report, const SafetensorsFile& file);
  Status restore_start(const SafetensorsFile& file) { return restore_slices(-1, file); }

 private:
  std::vector<int> places(int layer) const;
  Status restore_slices(int layer, const SafetensorsFile& file);

  const ModelFiles& files_;
  const Recipe& recipe_;
  uint64_t seed_;
  BasisChange& basis_;
};

}  // namespace quern
