// SPDX-License-Identifier: Apache-2.0
// The coding stage `mix(bits, stage, stage, ...)`: each matrix that it selects is coded by one of
// its stages, or kept, and which one is left to the allocator (src/allocate).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "solvers/solver.h"
#include "spec/spec.h"

namespace quern {

struct MixEntry {
  std::string text;                // canonical; kKeep: the matrix stays as it is
  std::unique_ptr<Solver> solver;  // null: kept
};
constexpr std::string_view kKeep = "keep";

// How what an error of a matrix does to the output is found out.
enum class Sensitivity : uint8_t {
  kProbes,     // each matrix coded once, the divergence measured
  kGradients,  // from squared gradients of the output, all matrices in two passes
};

struct Mix {
  double bits = 0;  // mean over all selected weights, side info counted; 0: left to the caller
  std::vector<MixEntry> menu;
  Sensitivity sensitivity = Sensitivity::kProbes;
};

// Positional: the bits, if given, then stages; without stages the default menu. Then
// sensitivity=probes|gradients.
Result<std::unique_ptr<Mix>> parse_mix(const spec::Call& call);
// Parses back to an equal stage.
spec::Call print_mix(const Mix& mix);

}  // namespace quern
