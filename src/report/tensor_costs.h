// SPDX-License-Identifier: Apache-2.0
// What every tensor of a model costs: bytes, and where it is coded the loss that coding left.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/model_files.h"

namespace quern {

struct TensorCost {
  std::string name;
  std::optional<WeightId> id;  // nothing where the tensor is several weights, or a part of one
  std::string kind;            // the codec's text, or the type of the elements
  std::string act;             // how its inputs are rounded; empty: nothing is said
  int64_t n_weights = 0;
  uint64_t bytes = 0;  // of all planes
  double error = -1;   // normalised layer_loss when it was coded; -1: not coded
  double bpw() const;  // 0 without weights
};

// Every stored byte of tensors belongs to exactly one row; by name.
std::vector<TensorCost> tensor_costs(const ModelFiles& files);

}  // namespace quern
