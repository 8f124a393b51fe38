// SPDX-License-Identifier: Apache-2.0
// Tensors of the output: the planes of coded matrices, and what is written in the source's float
// type, folded or cut out of a shared tensor.
#pragma once

#include <vector>

#include "model/fused_source.h"
#include "recipe/journal.h"
#include "recipe/output_plan.h"

namespace quern {

class DenseTensors {
 public:
  // All arguments must outlive this.
  DenseTensors(const FusedSource& fused, const OutputPlan& plan) : fused_(fused), plan_(plan) {}

  // The weight and its bias.
  Status add(const WeightPlan& weight, std::vector<OutputTensor>& out) const;
  // What `add` calls the weight; of a matrix it is known without reading it.
  Result<TensorSpec> spec(const WeightPlan& weight) const;
  // The bias of a weight, if it has one that is not copied.
  Status add_bias(const WeightPlan& weight, std::vector<OutputTensor>& out) const;
  // The same where it is at hand; empty: there is none.
  void add_bias(const WeightPlan& weight, const std::vector<float>& bias,
                std::vector<OutputTensor>& out) const;
  // To what a file will hold of it.
  static void round_bias(const WeightPlan& weight, std::vector<float>& bias);

 private:
  const FusedSource& fused_;
  const OutputPlan& plan_;
};

void add_planes(const WeightPlan& weight, const CodedMatrix& codes, std::vector<OutputTensor>& out);
// The ranges of a static rounding; nothing if it has none.
void add_ranges(const WeightPlan& weight, const ActRounding& rounding,
                std::vector<OutputTensor>& out);

// The data of a layer's operators (of BasisChange::kAllLayers: of those that all layers have).
void add_operators(const BasisChange& basis, int layer, std::vector<OutputTensor>& out);

// A code for NaN or infinity would be an arbitrary number, and its error none.
Status check_finite(const Matrix<float>& w, const WeightId& id);

}  // namespace quern
