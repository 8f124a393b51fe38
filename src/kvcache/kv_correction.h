// SPDX-License-Identifier: Apache-2.0
// What pages keep beside codes: the few numbers that would widen a range, as differences in halves,
// and what is left over as a product of low rank (kernels/block_correction.h). In a page: the left
// factors F16 [rank, rows], the right ones F16 [rank, cols], the differences F16 [n_entries], and
// their places U16 [n_entries], row * cols + col.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace quern {

struct KvCorrectionShape {
  int64_t rows = 0, cols = 0;
  int64_t rank = 0, n_entries = 0;
  int64_t n_bytes() const { return 2 * rank * (rows + cols) + 4 * n_entries; }
};

// Most that scratch has room for.
inline constexpr int64_t kMostKvRank = 16;
inline constexpr double kMostKvOutliers = 10;  // percent

// Of n numbers, `percent` of 100; at least one unless that is 0.
int64_t outlier_count(double percent, int64_t n);

// Places in x [rows, cols], ascending, of the numbers without which the ranges of the rows are
// narrowest: one after the other, the end of a row that takes most off the sum of squared ranges.
std::vector<uint16_t> choose_outliers(const float* x, int64_t rows, int64_t cols, int64_t n);

// left [rank, rows] with rows of norm 1, or 0, that are orthogonal, and right [rank, cols] so that
// left' right is near the best product of that rank to x [rows, cols]: three rounds of block power
// iteration from fixed numbers (GEAR, arXiv 2403.05527). rank is at most rows and cols.
void low_rank(const float* x, int64_t rows, int64_t cols, int64_t rank, float* left, float* right);

struct KvCorrectionParts {
  std::span<const float> left, right, deltas;
  std::span<const uint16_t> places;
};
void put_correction(const KvCorrectionShape& shape, const KvCorrectionParts& parts,
                    std::byte* page);
// Fills *scratch.correction; any bytes are safe.
void read_correction(const KvCorrectionShape& shape, const std::byte* page,
                     const KvScratch& scratch);

}  // namespace quern
