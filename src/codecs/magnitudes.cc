// SPDX-License-Identifier: Apache-2.0
#include "codecs/magnitudes.h"

#include <algorithm>
#include <cmath>

namespace quern {

std::vector<WeighedValue> weighed_values(std::span<const float> w, std::span<const float> weight) {
  float heaviest = 0;
  for (const float h : weight) heaviest = std::max(heaviest, h);
  std::vector<WeighedValue> values(w.size());
  for (size_t j = 0; j < w.size(); ++j) {
    const float h = weight.empty() || !(heaviest > 0) ? 1 : std::max(weight[j] / heaviest, 1e-6f);
    values[j] = {std::isfinite(w[j]) ? w[j] : 0, h};
  }
  return values;
}

MagnitudeSplit split_magnitudes(std::span<WeighedValue> values, InnerMagnitude inner) {
  std::sort(values.begin(), values.end(), [](const WeighedValue& a, const WeighedValue& b) {
    return std::abs(a.value) > std::abs(b.value);
  });
  return split_sorted_magnitudes(values, inner);
}

// With W the weight and S the weighed sum of magnitudes of a side, its mean S / W takes S^2 / W off
// the energy.
MagnitudeSplit split_sorted_magnitudes(std::span<const WeighedValue> values, InnerMagnitude inner) {
  double energy = 0, all_weight = 0, all_sum = 0;
  for (const auto& [value, weight] : values) {
    energy += weight * value * value;
    all_weight += weight;
    all_sum += weight * std::abs(value);
  }
  MagnitudeSplit best;
  double best_gain = -1, weight_above = 0, sum_above = 0;
  for (const auto& [value, weight] : values) {
    weight_above += weight;
    sum_above += weight * std::abs(value);
    const double weight_below = std::max(0.0, all_weight - weight_above);
    const double sum_below = std::max(0.0, all_sum - sum_above);
    const bool has_inner = inner == InnerMagnitude::kFree && weight_below > 1e-9 * all_weight;
    const double outer_mean = sum_above / weight_above;
    const double inner_mean = has_inner ? std::min(sum_below / weight_below, outer_mean) : 0;
    const double gain = sum_above * outer_mean + sum_below * inner_mean;
    if (gain > best_gain) {
      best_gain = gain;
      best = {inner == InnerMagnitude::kFree && !has_inner ? outer_mean : inner_mean, outer_mean,
              std::max(0.0, energy - gain)};
    }
  }
  return best;
}

SortedValues::SortedValues(std::vector<WeighedValue> values)
    : weight_(values.size() + 1), sum_(values.size() + 1) {
  std::sort(values.begin(), values.end(),
            [](const WeighedValue& a, const WeighedValue& b) { return a.value < b.value; });
  for (size_t k = 0; k < values.size(); ++k) {
    const auto& [value, weight] = values[k];
    values_.push_back(value);
    weight_[k + 1] = weight_[k] + weight;
    sum_[k + 1] = sum_[k] + weight * value;
    energy_ += weight * value * value;
  }
}

double SortedValues::largest() const {
  return values_.empty() ? 0 : std::max(std::abs(values_.front()), std::abs(values_.back()));
}

LevelSums SortedValues::sums(const std::array<double, 4>& levels) const {
  std::array<size_t, 4> rising = {0, 1, 2, 3};
  std::sort(rising.begin(), rising.end(),
            [&](size_t a, size_t b) { return levels[a] < levels[b]; });
  LevelSums sums;
  sums.loss = energy_;
  size_t begin = 0;
  for (size_t r = 0; r < rising.size(); ++r) {
    const size_t level = rising[r];
    size_t end = values_.size();
    if (r + 1 < rising.size()) {
      const double border = (levels[level] + levels[rising[r + 1]]) / 2;
      end = static_cast<size_t>(std::upper_bound(values_.begin(), values_.end(), border) -
                                values_.begin());
    }
    sums.weight[level] = weight_[end] - weight_[begin];
    sums.sum[level] = sum_[end] - sum_[begin];
    sums.loss += levels[level] * (levels[level] * sums.weight[level] - 2 * sums.sum[level]);
    begin = end;
  }
  return sums;
}

}  // namespace quern
