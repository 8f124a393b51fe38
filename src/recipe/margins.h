// SPDX-License-Identifier: Apache-2.0
// How much rows and columns of matrices matter to the output of a model, by the squares of its
// gradients, for the solvers that ask for it.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "calib/corpus.h"
#include "recipe/output_plan.h"
#include "recipe/prepared.h"

namespace quern {

// Mean squared gradients, as shares of the matrix's mean.
struct Margins {
  std::vector<float> rows, columns;  // [n_out], [n_in]
};

// Of every matrix that `plan` gives to a solver with needs_gradients(); nothing is run if there is
// none. Two passes over the original; fails where it has no adjoint.
Result<std::map<WeightId, Margins>> gather_margins(const Prepared& prepared, const OutputPlan& plan,
                                                   const Corpus& corpus, uint64_t seed,
                                                   const std::function<bool(double)>& proceed);

}  // namespace quern
