// SPDX-License-Identifier: Apache-2.0
// Y (M D M^T)^-1 in two sweeps over blocks of columns. With V M^T = Y solved from the last column
// to the first and divided by D, X M = V / D is solved from the first to the last:
//     V_J = (Y_J - V_{>J} (M^T)_{>J,J}) (M^T)_JJ^-1,    X_J = (V_J / D_J - X_{<J} M_{<J,J}) M_JJ^-1
// Nearly all of it is subtract_rows. Rows are independent.
#include <algorithm>

#include "base/check.h"
#include "base/parallel.h"
#include "linalg/cholesky.h"

namespace quern {
namespace {

constexpr int64_t kRows = 48;
constexpr int64_t kBlock = 48;

}  // namespace

void divide_by_factored(MatrixView<double> y, MatrixView<const double> factor) {
  QUERN_CHECK(factor.rows == factor.cols && y.cols == factor.cols);
  const int64_t n = y.cols;
  Matrix<double> transposed(n, n);  // M^T below the diagonal
  parallel_for(n, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < i; ++j) transposed(i, j) = factor(j, i);
    }
  });
  parallel_for(y.rows, kRows, [&](int64_t first, int64_t last) {
    const int64_t rows = last - first;
    for (int64_t b = (n - 1) / kBlock * kBlock; b >= 0; b -= kBlock) {
      const int64_t end = std::min(b + kBlock, n);
      if (end < n) {
        kernels().subtract_rows(y.row(first) + end, y.stride, rows, transposed.row(end) + b, n,
                                n - end, end - b, y.row(first) + b, y.stride);
      }
      for (int64_t r = first; r < last; ++r) {
        double* row = y.row(r);
        for (int64_t i = end - 1; i > b; --i) {
          for (int64_t j = b; j < i; ++j) row[j] -= row[i] * transposed(i, j);
        }
      }
    }
    for (int64_t r = first; r < last; ++r) {
      for (int64_t j = 0; j < n; ++j) y(r, j) /= factor(j, j);
    }
    for (int64_t b = 0; b < n; b += kBlock) {
      const int64_t end = std::min(b + kBlock, n);
      kernels().subtract_rows(y.row(first), y.stride, rows, factor.row(0) + b, factor.stride, b,
                              end - b, y.row(first) + b, y.stride);
      for (int64_t r = first; r < last; ++r) {
        double* row = y.row(r);
        for (int64_t i = b; i < end; ++i) {
          for (int64_t j = i + 1; j < end; ++j) row[j] -= row[i] * factor(i, j);
        }
      }
    }
  });
}

}  // namespace quern
