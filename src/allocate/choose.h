// SPDX-License-Identifier: Apache-2.0
// The integer programme of an allocation: one choice for each unit so that the sum of costs is
// least while the sum of bytes keeps within a budget (multiple-choice knapsack).
//
// A sweep of the Lagrangian, min over choices of cost + lambda * bytes, gives the best choices
// within any budget that lies on the convex hull (Everett 1963; for rate and distortion, Shoham and
// Gersho 1988). What it leaves of the budget is spent by moves of one and of two units.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace quern {

struct Choice {
  uint64_t bytes = 0;
  double cost = 0;
};
using ChoicesOfUnits = std::vector<std::vector<Choice>>;  // [unit][choice]

struct Totals {
  uint64_t bytes = 0;
  double cost = 0;
};
Totals totals(const ChoicesOfUnits& units, std::span<const int> chosen);

// A choice for each unit, its totals never above the budget and never costlier than any of `starts`
// that keep it (allocations known beforehand). Fails, naming the least possible size, if the budget
// is too small for any. Deterministic.
Result<std::vector<int>> choose(const ChoicesOfUnits& units, uint64_t budget,
                                const std::vector<std::vector<int>>& starts = {});

}  // namespace quern
