// SPDX-License-Identifier: Apache-2.0
// The weights of a source model in the basis of a compression, matrix by matrix.
#pragma once

#include "model/fuse.h"
#include "model/model_files.h"

namespace quern {

class FusedSource {
 public:
  // Both must outlive this; the basis may gain operators in layers that are not read yet, but keeps
  // its form.
  FusedSource(const ModelFiles& source, const BasisChange& basis);

  // A weight or bias as the changed model's file holds it: folded in double, rounded to float once.
  // Pages of the source are released after reading.
  Result<Matrix<float>> weight(const WeightId& id) const { return part(id, Part::kWeight); }
  Result<std::vector<float>> bias(const WeightId& id) const;  // empty if the weight has none

  // A whole layer ready to run: mapped where the basis changes nothing, float copies elsewhere.
  Result<LayerWeights> layer(int index) const;
  Result<EndWeights> ends() const;
  const ModelDesc& desc() const { return desc_; }  // of the changed model

 private:
  Result<Matrix<float>> part(const WeightId& id, Part part) const;
  Result<NormWeight> norm(const WeightId& id, const NormDesc& desc) const;
  Result<LinearWeight> linear(const WeightId& id) const;

  const ModelFiles& source_;
  const BasisChange& basis_;
  ModelDesc desc_;  // of the changed model
  Fold<double> fold_;
};

}  // namespace quern
