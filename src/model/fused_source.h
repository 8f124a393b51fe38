// SPDX-License-Identifier: Apache-2.0
// The weights of a source model in the basis of a compression, matrix by matrix.
#pragma once

#include "model/fuse.h"
#include "model/model_files.h"

namespace quern {

class FusedSource {
 public:
  FusedSource(const ModelFiles& source, const BasisChange& basis)
      : source_(source), basis_(basis) {}

  // Folded in double, rounded to float once. Pages of the source are released after reading.
  Result<Matrix<float>> weight(const WeightId& id) const;
  Result<std::vector<float>> bias(const WeightId& id) const;  // empty if the weight has none
  Result<NormWeight> norm(const WeightId& id, const NormDesc& desc) const;

  // A whole layer ready to run: mapped where the basis changes nothing, float copies elsewhere.
  Result<LayerWeights> layer(int index) const;

 private:
  Result<LinearWeight> linear(const WeightId& id) const;
  const ModelFiles& source_;
  const BasisChange& basis_;
};

}  // namespace quern
