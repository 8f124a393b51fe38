// SPDX-License-Identifier: Apache-2.0
// A mean with its standard error (of a sample).
#pragma once

#include <cmath>
#include <vector>

namespace quern {

struct Mean {
  double value = 0, stderr_of = 0;
};

inline Mean mean_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  Mean mean;
  for (const double value : values) mean.value += value / n;
  double squares = 0;
  for (const double value : values) squares += (value - mean.value) * (value - mean.value);
  if (n > 1) mean.stderr_of = std::sqrt(squares / (n - 1) / n);
  return mean;
}

}  // namespace quern
