// SPDX-License-Identifier: Apache-2.0
// The units that the mix of a recipe leaves to the allocator.
#pragma once

#include <string>
#include <vector>

#include "recipe/output_plan.h"
#include "recipe/prepared.h"

namespace quern {

// Matrices that get one code together, because one selector names them (allocate/curves.h).
struct Unit {
  spec::WhereTerm where;
  std::string name;  // "gate[3:4]", "embed"
  std::vector<WeightId> weights;
  int64_t n_weights = 0;
  std::vector<uint64_t> bytes;  // under each stage of the mix; 0: it cannot code the unit

  double bits(size_t stage) const {
    return 8.0 * static_cast<double>(bytes[stage]) / static_cast<double>(n_weights);
  }
};

// Bytes of a matrix that stays as it is, by a plan that keeps it; and coded, 0 if it cannot be.
uint64_t kept_bytes(const Prepared& prepared, const WeightPlan& weight);
uint64_t coded_bytes(const WeightPlan& weight, const Codec& codec);

// In the order of a forward pass. Fails where the recipe has no mix, the mix selects nothing, or a
// transform's operators are not known before the layers are run.
Result<std::vector<Unit>> units_of(const Prepared& prepared);

}  // namespace quern
