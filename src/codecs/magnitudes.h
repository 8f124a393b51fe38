// SPDX-License-Identifier: Apache-2.0
// How the codecs of one and two bits fit a group of weights: the best two magnitudes where signs
// are kept, and what falls to each of four levels.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace quern {

struct WeighedValue {
  double value;
  double weight;  // importance of an error there
};

// Entries of a row with their columns' importance (empty: all 1). What is not a number is 0, and an
// importance is at least a millionth of the largest.
std::vector<WeighedValue> weighed_values(std::span<const float> w, std::span<const float> weight);

struct MagnitudeSplit {
  double inner = 0, outer = 0;  // 0 <= inner <= outer
  double loss = 0;              // sum weight (|value| - the nearer of both)^2
};
enum class InnerMagnitude : uint8_t { kFree, kZero };

// Exact: the values fall into magnitudes below and above some border, of which there are no more
// than values; each side's best magnitude is its mean. Sorts `values` by falling magnitude.
MagnitudeSplit split_magnitudes(std::span<WeighedValue> values, InnerMagnitude inner);
// The same of values that are sorted already.
MagnitudeSplit split_sorted_magnitudes(std::span<const WeighedValue> values, InnerMagnitude inner);

struct LevelSums {
  double loss = 0;  // sum weight (value - the nearest level)^2
  std::array<double, 4> weight{},
      sum{};  // of what is nearest to each level: weight, weight * value
  double mean(size_t level) const { return sum[level] / weight[level]; }
};

// A group that is asked about many sets of levels: sorted once, by cumulative sums after that.
class SortedValues {
 public:
  explicit SortedValues(std::vector<WeighedValue> values);
  double largest() const;  // magnitude
  LevelSums sums(const std::array<double, 4>& levels) const;

 private:
  std::vector<double> values_;        // rising
  std::vector<double> weight_, sum_;  // of the first k, [values + 1]
  double energy_ = 0;
};

}  // namespace quern
