// SPDX-License-Identifier: Apache-2.0
// Levels of a code by weighted k-means in one dimension, and the few numbers of a float each that
// codes stand for.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace quern {

// Weights, first and second moments of points in [-1, 1], gathered in cells.
class WeightedCells {
 public:
  static constexpr int kCells = 1024;
  void add(double x, double weight);
  double weight() const;
  // n levels, ascending, of the least weighted squared error among all ways to share out the cells
  // (dynamic programming). Without points: evenly spread.
  std::vector<double> best_levels(int n) const;
  // The same error of given levels, cells as wholes to the nearest of their mean; per weight.
  double error_of(const std::vector<double>& levels) const;

 private:
  struct Cell {
    double weight = 0, first = 0, second = 0;
  };
  std::array<Cell, kCells> cells_{};
};

// x[r, j] = tables[r, codes[r, j]] for j < n, a multiple of 64; tables have 16 numbers a row, codes
// are below 16.
void look_up_rows(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n, float* x);
void look_up_rows_ref(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n,
                      float* x);
void look_up_rows_avx512(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n,
                         float* x);

}  // namespace quern
