// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_levels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernels.h"

namespace quern {

void WeightedCells::add(double x, double weight) {
  const double at = (std::clamp(x, -1.0, 1.0) + 1) / 2 * kCells;
  Cell& cell = cells_[static_cast<size_t>(std::min<int64_t>(kCells - 1, static_cast<int64_t>(at)))];
  cell.weight += weight;
  cell.first += weight * x;
  cell.second += weight * x * x;
}

double WeightedCells::weight() const {
  double sum = 0;
  for (const Cell& cell : cells_) sum += cell.weight;
  return sum;
}

std::vector<double> WeightedCells::best_levels(int n) const {
  std::vector<double> levels(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) levels[static_cast<size_t>(i)] = n == 1 ? 0 : -1 + 2.0 * i / (n - 1);
  if (!(weight() > 0)) return levels;
  std::array<Cell, kCells + 1> until{};  // sums of the cells before
  for (size_t i = 0; i < kCells; ++i) {
    until[i + 1] = {until[i].weight + cells_[i].weight, until[i].first + cells_[i].first,
                    until[i].second + cells_[i].second};
  }
  const auto cost = [&](size_t first, size_t end) {
    const double weight = until[end].weight - until[first].weight;
    const double sum = until[end].first - until[first].first;
    return weight > 0 ? until[end].second - until[first].second - sum * sum / weight : 0;
  };
  // best[k][end]: of the cells before `end` in k + 1 parts; from[k][end]: where the last begins.
  const auto parts = static_cast<size_t>(n);
  std::vector<std::vector<double>> best(parts, std::vector<double>(kCells + 1));
  std::vector<std::vector<size_t>> from(parts, std::vector<size_t>(kCells + 1));
  for (size_t end = 0; end <= kCells; ++end) best[0][end] = cost(0, end);
  for (size_t k = 1; k < parts; ++k) {
    for (size_t end = 0; end <= kCells; ++end) {
      best[k][end] = std::numeric_limits<double>::infinity();
      for (size_t first = 0; first <= end; ++first) {
        const double sum = best[k - 1][first] + cost(first, end);
        if (sum < best[k][end]) {
          best[k][end] = sum;
          from[k][end] = first;
        }
      }
    }
  }
  size_t end = kCells;
  for (size_t k = parts; k-- > 0;) {
    const size_t first = k == 0 ? 0 : from[k][end];
    const double weight = until[end].weight - until[first].weight;
    // A part without points stands at its cell: any place serves.
    levels[k] = weight > 0 ? (until[end].first - until[first].first) / weight
                           : static_cast<double>(end) / kCells * 2 - 1;
    end = first;
  }
  std::sort(levels.begin(), levels.end());
  return levels;
}

double WeightedCells::error_of(const std::vector<double>& levels) const {
  double error = 0;
  for (const Cell& cell : cells_) {
    if (cell.weight == 0) continue;
    double least = std::numeric_limits<double>::infinity();
    for (const double level : levels) {
      least = std::min(least, cell.second - 2 * level * cell.first + level * level * cell.weight);
    }
    error += least;
  }
  return error / weight();
}

void look_up_rows_ref(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n,
                      float* x) {
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t j = 0; j < n; ++j) x[r * n + j] = tables[r * 16 + codes[r * n + j]];
  }
}

void look_up_rows(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n, float* x) {
  const bool is_wide = kernels().isa == Isa::kAvx512;
  (is_wide ? look_up_rows_avx512 : look_up_rows_ref)(codes, tables, n_rows, n, x);
}

}  // namespace quern
