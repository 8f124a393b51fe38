// SPDX-License-Identifier: Apache-2.0
#include "model/dense_weights.h"

#include <algorithm>

namespace quern {

template <class T>
Result<DenseWeights<T>> DenseWeights<T>::load(const WeightStore& store) {
  DenseWeights result;
  for (const WeightId& id : store.weight_ids()) {
    for (Part part : {Part::kWeight, Part::kBias}) {
      if (!store.exists(id, part)) continue;
      QUERN_ASSIGN(const Matrix<float> loaded, store.load(id, part));
      Matrix<T> weight(loaded.rows(), loaded.cols());
      std::copy_n(loaded.data(), loaded.rows() * loaded.cols(), weight.data());
      result.weights_.emplace(std::pair(id, part), std::move(weight));
    }
  }
  return result;
}

template class DenseWeights<float>;
template class DenseWeights<double>;

}  // namespace quern
