// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "codecs/cvxq.h"
#include "codecs/level_tables.h"

namespace quern {
namespace {

double gaussian_error(const ScalarTable& table) {
  constexpr int kPoints = 4096;
  constexpr float kReach = 6;
  std::vector<float> x(kPoints), density(kPoints);
  double total = 0;
  for (int i = 0; i < kPoints; ++i) {
    const float at = (static_cast<float>(2 * i + 1) / kPoints - 1) * kReach;
    x[static_cast<size_t>(i)] = at;
    density[static_cast<size_t>(i)] = std::exp(-0.5f * at * at);
    total += static_cast<double>(density[static_cast<size_t>(i)]);
  }
  double least = INFINITY;
  for (int step = -kCvxqSearchSteps; step <= kCvxqSearchSteps; ++step) {
    const auto scale = static_cast<float>(std::exp2(step * kCvxqSearchStep));
    least = std::min(least, table_error(table, {x.data(), density.data(), kPoints, scale}));
  }
  return least / total;
}

}  // namespace

CvxqLevels::CvxqLevels(std::span<const std::span<const float>> levels) {
  errors_[0] = 1;
  for (int depth = 1; depth < kCvxqDepths; ++depth) {
    const std::span<const float> of_depth = levels[static_cast<size_t>(depth - 1)];
    tables_.emplace_back(depth, of_depth);
    std::copy(of_depth.begin(), of_depth.end(), all_.begin() + cvxq_first_level(depth));
    errors_[static_cast<size_t>(depth)] = gaussian_error(table(depth));
  }
}

const CvxqLevels& cvxq_levels(bool is_lloyd) {
  static const CvxqLevels laplace(kLaplaceLevels), lloyd(kLloydLevels);
  return is_lloyd ? lloyd : laplace;
}

}  // namespace quern
