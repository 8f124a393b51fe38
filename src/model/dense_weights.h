// SPDX-License-Identifier: Apache-2.0
// All weights of a model in memory, in one precision. Transforms edit them in place.
#pragma once

#include <map>
#include <utility>

#include "base/check.h"
#include "model/roles.h"
#include "model/weights.h"
#include "tensor/matrix.h"

namespace quern {

template <class T>
class DenseWeights {
 public:
  static Result<DenseWeights> load(const WeightStore& store);

  // The weight must exist.
  const Matrix<T>& get(const WeightId& id, Part part = Part::kWeight) const {
    const Matrix<T>* weight = find(id, part);
    QUERN_CHECK(weight != nullptr);
    return *weight;
  }
  const Matrix<T>* find(const WeightId& id, Part part = Part::kWeight) const {
    const auto found = weights_.find({id, part});
    return found == weights_.end() ? nullptr : &found->second;
  }
  // Creates the weight if it is absent (an untied head, a bias that a transform needs); the
  // description must then say that it exists.
  Matrix<T>& edit(const WeightId& id, Part part = Part::kWeight) { return weights_[{id, part}]; }

 private:
  std::map<std::pair<WeightId, Part>, Matrix<T>> weights_;
};

}  // namespace quern
