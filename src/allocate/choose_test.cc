// SPDX-License-Identifier: Apache-2.0
#include "allocate/choose.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace quern {
namespace {

// Units whose costs fall roughly by a factor of four a bit, as those of codecs do.
ChoicesOfUnits random_units(uint64_t seed, size_t n_units, size_t n_choices) {
  Random random(seed);
  ChoicesOfUnits units(n_units);
  for (auto& choices : units) {
    const double weight = std::exp(2 * random.gaussian());
    const uint64_t size = 100 + random.below(1000);
    for (size_t c = 0; c < n_choices; ++c) {
      const double bits = 1 + static_cast<double>(c) / 2;
      choices.push_back({static_cast<uint64_t>(bits * static_cast<double>(size)),
                         weight * std::exp2(-2 * bits) * (1 + 0.1 * random.uniform())});
    }
  }
  return units;
}

double least_cost(const ChoicesOfUnits& units, uint64_t budget, size_t unit = 0) {
  if (unit == units.size()) return 0;
  double least = INFINITY;
  for (const Choice& choice : units[unit]) {
    if (choice.bytes > budget) continue;
    least = std::min(least, choice.cost + least_cost(units, budget - choice.bytes, unit + 1));
  }
  return least;
}

uint64_t least_bytes(const ChoicesOfUnits& units) {
  return totals(units, std::vector<int>(units.size(), 0)).bytes;
}

TEST(Choose, IsCloseToTheBestOfAllChoicesAndNeverAboveTheBudget) {
  double worst = 1;
  int n_best = 0, n_all = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const ChoicesOfUnits units = random_units(seed, 6, 5);
    for (const double share : {1.0, 1.1, 1.3, 1.7, 2.2, 2.9}) {
      const auto budget = static_cast<uint64_t>(share * static_cast<double>(least_bytes(units)));
      const auto chosen = choose(units, budget);
      ASSERT_TRUE(chosen.has_value());
      const Totals sum = totals(units, *chosen);
      EXPECT_LE(sum.bytes, budget);
      const double ratio = sum.cost / least_cost(units, budget);
      worst = std::max(worst, ratio);
      n_best += ratio < 1 + 1e-12;
      ++n_all;
    }
  }
  EXPECT_LT(worst, 1.15);  // six units: one choice is much of the whole
  EXPECT_GT(n_best, n_all / 2);
}

TEST(Choose, SpendsTheBudgetWhereUnitsAreMany) {
  const ChoicesOfUnits units = random_units(7, 60, 9);
  const uint64_t least = least_bytes(units);
  double last = INFINITY;
  for (double share = 1.1; share < 4.5; share += 0.2) {
    const auto budget = static_cast<uint64_t>(share * static_cast<double>(least));
    const auto chosen = choose(units, budget);
    ASSERT_TRUE(chosen.has_value());
    const Totals sum = totals(units, *chosen);
    EXPECT_LE(sum.bytes, budget);
    EXPECT_GE(static_cast<double>(sum.bytes), 0.998 * static_cast<double>(budget)) << share;
    EXPECT_LT(sum.cost, last);
    last = sum.cost;
  }
}

TEST(Choose, IsNeverCostlierThanAStartThatFits) {
  const ChoicesOfUnits units = random_units(3, 4, 5);
  for (int choice = 0; choice < 5; ++choice) {
    const std::vector<int> start(units.size(), choice);
    const Totals sum = totals(units, start);
    const auto chosen = choose(units, sum.bytes, {start});
    ASSERT_TRUE(chosen.has_value());
    EXPECT_LE(totals(units, *chosen).cost, sum.cost);
  }
}

// Four times the variance is one bit more, wherever the water level stands (reverse water-filling).
TEST(Choose, FourTimesTheVarianceIsWorthOneBit) {
  ChoicesOfUnits units(4);
  for (size_t u = 0; u < units.size(); ++u) {
    for (int bits = 0; bits <= 8; ++bits) {
      units[u].push_back({static_cast<uint64_t>(1000 * bits),
                          std::pow(4.0, static_cast<double>(u)) * std::exp2(-2 * bits)});
    }
  }
  const auto chosen = choose(units, 1000 * (2 + 3 + 4 + 5));
  ASSERT_TRUE(chosen.has_value());
  EXPECT_EQ(*chosen, (std::vector<int>{2, 3, 4, 5}));
}

TEST(Choose, SaysHowSmallItCanBe) {
  const ChoicesOfUnits units = {{{100, 1}, {200, 0.5}}, {{50, 1}}};
  const auto chosen = choose(units, 149);
  ASSERT_FALSE(chosen.has_value());
  EXPECT_NE(chosen.error().message.find("150"), std::string::npos) << chosen.error().message;
  EXPECT_EQ(chosen.error().kind, ErrorKind::kUsage);
}

}  // namespace
}  // namespace quern
