// SPDX-License-Identifier: Apache-2.0
// A plan says which stage codes which unit of a model. It is a file that a user may read and edit,
// and it is a recipe.
#pragma once

#include <string>
#include <vector>

#include "allocate/units.h"
#include "base/status.h"
#include "formats/json.h"

namespace quern {

struct PlanRow {
  std::string unit;   // its selector: "gate[3:4]"
  std::string stage;  // of the mix, canonical: "ldlq(trellis(2))", "keep"
  int64_t n_weights = 0;
  uint64_t bytes = 0;
  double kl = -1;       // expected, nats per token; < 0: not known
  double seconds = -1;  // of coding, expected; < 0: not known
};

struct Plan {
  std::string recipe;         // canonical, with the mix
  std::string source_digest;  // of the model it was made for
  std::vector<PlanRow> rows;  // in the order of units_of
  uint64_t bytes = 0;         // of the weight files
  double bpw = 0;             // of these over all parameters
  double kl = -1, seconds = -1;
  uint64_t peak_bytes = 0;  // of memory while it is carried out, beyond mapped files

  Json to_json() const;
};

// From a file that a user may have edited: every unit once, stages that parse. What else the rows
// say is not trusted (finish_plan).
Result<Plan> read_plan(const std::string& path);
Result<Plan> plan_from_json(const Json& json, const std::string& where);

// The recipe that carries out a plan: stages by first use, their selectors by role and layer.
Result<Recipe> recipe_of(const Prepared& prepared, const std::vector<Unit>& units,
                         const Plan& plan);

// Checks a plan against a model and fills in bytes, bpw and peak, exactly.
Status finish_plan(const Prepared& prepared, const std::vector<Unit>& units, Plan& plan);

}  // namespace quern
