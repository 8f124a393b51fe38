// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_correction.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/float_types.h"
#include "base/random.h"

namespace quern {
namespace {

constexpr int kRounds = 3;
constexpr float kLargestHalf = 65504;

float finite(float x) { return std::isfinite(x) ? x : 0; }

// Halves that are numbers.
void put_halves(std::span<const float> x, std::byte* to) {
  for (size_t i = 0; i < x.size(); ++i) {
    put_half(to, static_cast<int64_t>(i), std::clamp(finite(x[i]), -kLargestHalf, kLargestHalf));
  }
}

// The two least and the two largest of a row, without what was taken away. Of equal numbers the
// first is the least and the last the largest.
class RowRange {
 public:
  RowRange(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) left_.push_back({finite(x[i]), static_cast<uint16_t>(i)});
    look();
  }
  bool can_drop() const { return left_.size() > 1; }
  // What the square of the range loses without the better end.
  double gain() const {
    const double width = double{high_[0].x} - low_[0].x;
    const double less = std::min(without_low(), without_high());
    return width * width - less * less;
  }
  uint16_t drop() {
    const uint16_t at = without_high() <= without_low() ? high_[0].at : low_[0].at;
    std::erase_if(left_, [at](const Number& number) { return number.at == at; });
    look();
    return at;
  }

 private:
  struct Number {
    float x;
    uint16_t at;
  };
  void look() {
    low_[0] = high_[0] = low_[1] = high_[1] = left_[0];
    for (size_t i = 1; i < left_.size(); ++i) {
      const Number number = left_[i];
      if (number.x < low_[0].x) {
        low_[1] = low_[0];
        low_[0] = number;
      } else if (i == 1 || number.x < low_[1].x) {
        low_[1] = number;
      }
      if (number.x >= high_[0].x) {
        high_[1] = high_[0];
        high_[0] = number;
      } else if (i == 1 || number.x >= high_[1].x) {
        high_[1] = number;
      }
    }
  }
  double without_low() const { return double{high_[0].x} - low_[1].x; }
  double without_high() const { return double{high_[1].x} - low_[0].x; }

  std::vector<Number> left_;
  Number low_[2], high_[2];
};

// Rows [rank, n] become orthonormal; those without direction become zero.
void orthonormalise(int64_t rank, int64_t n, float* rows) {
  std::vector<double> q(rows, rows + rank * n);
  for (int64_t k = 0; k < rank; ++k) {
    double* row = q.data() + k * n;
    const double before = std::inner_product(row, row + n, row, 0.0);
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < k; ++j) {
        const double* other = q.data() + j * n;
        const double share = std::inner_product(row, row + n, other, 0.0);
        for (int64_t i = 0; i < n; ++i) row[i] -= share * other[i];
      }
    }
    const double norm = std::inner_product(row, row + n, row, 0.0);
    const double scale = norm > 1e-12 * before ? 1 / std::sqrt(norm) : 0;
    for (int64_t i = 0; i < n; ++i) {
      row[i] *= scale;
      rows[k * n + i] = static_cast<float>(row[i]);
    }
  }
}

}  // namespace

int64_t outlier_count(double percent, int64_t n) {
  if (percent == 0) return 0;
  return std::max<int64_t>(1, std::llround(percent / 100 * static_cast<double>(n)));
}

std::vector<uint16_t> choose_outliers(const float* x, int64_t rows, int64_t cols, int64_t n) {
  std::vector<RowRange> ranges;
  std::vector<double> gains;
  for (int64_t r = 0; r < rows && n > 0; ++r) {
    ranges.emplace_back(x + r * cols, cols);
    gains.push_back(ranges.back().can_drop() ? ranges.back().gain() : -1);
  }
  std::vector<uint16_t> places;
  while (static_cast<int64_t>(places.size()) < n) {
    const auto best =
        static_cast<size_t>(std::max_element(gains.begin(), gains.end()) - gains.begin());
    if (gains[best] < 0) break;  // every row is down to one number
    places.push_back(
        static_cast<uint16_t>(static_cast<int64_t>(best) * cols + ranges[best].drop()));
    gains[best] = ranges[best].can_drop() ? ranges[best].gain() : -1;
  }
  std::sort(places.begin(), places.end());
  return places;
}

void low_rank(const float* x, int64_t rows, int64_t cols, int64_t rank, float* left, float* right) {
  QUERN_CHECK(rank <= std::min(rows, cols));
  std::vector<float> numbers(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = finite(x[i]);
  Random random(0);
  for (int64_t i = 0; i < rank * cols; ++i) right[i] = static_cast<float>(random.gaussian());
  for (int round = 0; round < kRounds; ++round) {
    orthonormalise(rank, cols, right);
    kernels().dot_tile(right, cols, rank, numbers.data(), cols, rows, cols, left, rows);
    orthonormalise(rank, rows, left);
    std::fill_n(right, rank * cols, 0.0f);
    kernels().axpy_rows(left, rows, rank, numbers.data(), cols, rows, cols, right, cols);
  }
}

void put_correction(const KvCorrectionShape& shape, const KvCorrectionParts& parts,
                    std::byte* page) {
  const int64_t n_left = shape.rank * shape.rows, n_right = shape.rank * shape.cols;
  QUERN_CHECK(static_cast<int64_t>(parts.left.size()) == n_left &&
              static_cast<int64_t>(parts.right.size()) == n_right &&
              static_cast<int64_t>(parts.places.size()) <= shape.n_entries &&
              parts.places.size() == parts.deltas.size());
  put_halves(parts.left, page);
  put_halves(parts.right, page + 2 * n_left);
  std::byte* deltas = page + 2 * (n_left + n_right);
  std::byte* places = deltas + 2 * shape.n_entries;
  std::fill_n(deltas, 4 * shape.n_entries, std::byte{0});  // what is left over adds nothing
  put_halves(parts.deltas, deltas);
  if (!parts.places.empty()) std::memcpy(places, parts.places.data(), 2 * parts.places.size());
}

void read_correction(const KvCorrectionShape& shape, const std::byte* page,
                     const KvScratch& scratch) {
  const int64_t n_left = shape.rank * shape.rows, n_right = shape.rank * shape.cols;
  const int64_t n_halves = n_left + n_right + shape.n_entries;
  kernels().f16_to_float(page, n_halves, scratch.added);
  const std::byte* places = page + 2 * n_halves;
  uint16_t* rows = scratch.places;
  uint16_t* cols = rows + shape.n_entries;
  const int64_t last = shape.rows * shape.cols - 1;
  for (int64_t i = 0; i < shape.n_entries; ++i) {
    uint16_t place = 0;
    std::memcpy(&place, places + 2 * i, 2);
    const int64_t at = std::min<int64_t>(place, last);
    rows[i] = static_cast<uint16_t>(at / shape.cols);
    cols[i] = static_cast<uint16_t>(at % shape.cols);
  }
  *scratch.correction = {shape.rows,
                         shape.cols,
                         shape.rank,
                         scratch.added,
                         scratch.added + n_left,
                         shape.n_entries,
                         rows,
                         cols,
                         scratch.added + n_left + n_right};
}

}  // namespace quern
