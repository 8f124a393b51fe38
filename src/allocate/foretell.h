// SPDX-License-Identifier: Apache-2.0
// Foretells the KL of units coded by a probe from gradients of the output (calib/gradients.h): two
// passes over the model for all units together, where probing runs it once for every unit.
#pragma once

#include "allocate/curves.h"
#include "allocate/measure.h"
#include "allocate/units.h"
#include "calib/corpus.h"
#include "solvers/solver.h"

namespace quern {

// Sets probe_kl of every unit in `curves`. The errors of the probe must be independent of each
// other, as those of rounding to nearest are. Fails where the model has no adjoint.
Status foretell_probes(const Prepared& prepared, const std::vector<Unit>& units,
                       const Corpus& corpus, const Solver& probe, const MeasureOptions& options,
                       Curves& curves);

}  // namespace quern
