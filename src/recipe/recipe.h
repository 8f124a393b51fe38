// SPDX-License-Identifier: Apache-2.0
// A recipe: stages from left to right. Transforms change coordinates, `act` rounds inputs, a coding
// stage takes its codec first; each matrix is coded, and its inputs are rounded, by the first stage
// of the kind that selects it. Everything a recipe says is checked here, before any weight is read.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "activations/act_quantizer.h"
#include "base/status.h"
#include "model/layer_desc.h"
#include "model/roles.h"
#include "recipe/mix.h"
#include "solvers/solver.h"
#include "spec/spec.h"
#include "transforms/transform.h"

namespace quern {

struct CodingStage {
  std::unique_ptr<Solver> solver;  // null: a mix
  std::unique_ptr<Mix> mix;
  std::vector<spec::WhereTerm> where;  // empty: every matrix of the decoder layers
};

// Rounds the inputs of those it selects among the coded matrices.
struct ActStage {
  std::shared_ptr<const ActQuantizer> act;
  std::vector<spec::WhereTerm> where;  // empty: every matrix of the decoder layers
};

class Recipe {
 public:
  // Text of a recipe, the name of one of recipes/, or a path to a .recipe file.
  static Result<Recipe> load(std::string_view text_or_name);
  static Result<Recipe> parse(std::string_view text);

  const std::string& canonical() const { return canonical_; }
  std::span<const std::unique_ptr<Transform>> transforms() const { return transforms_; }

  // Checks selectors and shapes against a model; errors name the stage and the matrix.
  Status check(const ModelDesc& model) const;
  // Who codes this matrix; null: it stays as it is.
  const Solver* solver_for(const ModelDesc& model, const WeightId& id) const;
  // What is left to an allocator; null: nothing. A recipe with a mix codes no model as it stands.
  const Mix* mix() const;
  bool mixes(const ModelDesc& model, const WeightId& id) const;  // whether the mix has this matrix
  // The recipe with these stages in place of its mix.
  Result<Recipe> with_mix_as(const std::vector<spec::Stage>& stages) const;
  // How the inputs of this matrix are rounded if it is coded; null: the reader's choice.
  std::shared_ptr<const ActQuantizer> act_for(const ModelDesc& model, const WeightId& id) const;
  bool has_act() const { return !acts_.empty(); }
  // Whether calibration text must pass through the model.
  bool needs_calibration() const;
  bool is_fitted() const;  // has a transform that is fitted to the layers

 private:
  const CodingStage* stage_for(const ModelDesc& model, const WeightId& id) const;

  std::string canonical_;
  std::vector<spec::Stage> stages_;  // canonical
  std::vector<std::unique_ptr<Transform>> transforms_;
  std::vector<ActStage> acts_;
  std::vector<CodingStage> coding_;
};

// The selector of one layer's matrices of this role (of the ends if `layer` < 0): "gate[3:4]". Of
// experts, and shared ones, as of the others.
spec::WhereTerm selector_of(Role role, int layer);

}  // namespace quern
