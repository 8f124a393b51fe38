// SPDX-License-Identifier: Apache-2.0
// A model in another basis for the reference forward: the oracle of every change of basis.
#pragma once

#include "model/fuse.h"
#include "model/reference_forward.h"

namespace quern {

// The weights that the model has in `basis`, folded in T.
template <class T>
Result<DenseWeights<T>> changed_weights(const ModelDesc& model, const DenseWeights<T>& weights,
                                        const BasisChange& basis);

// What runs online in `basis`. Model and basis must outlive the hooks.
template <class T>
ReferenceHooks<T> online_hooks(const ModelDesc& model, const BasisChange& basis);

}  // namespace quern
