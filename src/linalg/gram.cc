// SPDX-License-Identifier: Apache-2.0
// X^T X through dot_tile: 512 tokens of X are transposed, so that features are rows, and every pair
// of 96 features becomes one tile of dots, added to H in double. 96 is a multiple of the register
// tile of dot_tile (4 x 6); two such panels of 512 tokens fill 40 % of a second cache.
#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"

namespace quern {
namespace {

constexpr int64_t kTokens = 512;
constexpr int64_t kStride = kTokens + 16;  // off the power of two: rows spread over cache sets
constexpr int64_t kFeatures = 96;
constexpr int64_t kBlock = 16;

// to[c, t] = x[t, c] for features [begin, end).
void transpose(MatrixView<const float> x, int64_t begin, int64_t end, MatrixView<float> to) {
  for (int64_t t0 = 0; t0 < x.rows; t0 += kBlock) {
    const int64_t t1 = std::min(t0 + kBlock, x.rows);
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t t = t0; t < t1; ++t) to(c, t) = x(t, c);
    }
  }
}

enum class Part : uint8_t { kAll, kUpper };

// Adds the tile of features [i, i + n_i) of a by [j, j + n_j) of b; of kUpper only what lies on or
// above the diagonal.
void add_tile(MatrixView<const float> a, MatrixView<const float> b, int64_t n_tokens, int64_t i,
              int64_t j, Part part, MatrixView<double> sum) {
  const int64_t n_i = std::min(kFeatures, sum.rows - i), n_j = std::min(kFeatures, sum.cols - j);
  alignas(64) float tile[kFeatures * kFeatures];
  kernels().dot_tile(a.row(i), kStride, n_i, b.row(j), kStride, n_j, n_tokens, tile, kFeatures);
  for (int64_t r = 0; r < n_i; ++r) {
    double* row = sum.row(i + r) + j;
    for (int64_t c = part == Part::kUpper && i == j ? r : 0; c < n_j; ++c) {
      row[c] += static_cast<double>(tile[r * kFeatures + c]);
    }
  }
}

void transpose(MatrixView<const float> x, MatrixView<float> to) {
  parallel_for(x.cols, kFeatures,
               [&](int64_t begin, int64_t end) { transpose(x, begin, end, to); });
}

}  // namespace

void accumulate_gram(MatrixView<const float> x, MatrixView<double> h) {
  QUERN_CHECK(h.rows == h.cols && h.rows == x.cols);
  const int64_t n_panels = ceil_div(h.rows, kFeatures);
  Matrix<float> features(h.rows, kStride);
  const MatrixView<const float> f = features.view();
  for (int64_t t = 0; t < x.rows; t += kTokens) {
    const MatrixView<const float> chunk = x.row_range(t, std::min(kTokens, x.rows - t));
    transpose(chunk, features.view());
    // A panel meets all panels after it; the first have most to do and are taken first.
    parallel_for(n_panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = i; j < n_panels; ++j) {
          add_tile(f, f, chunk.rows, i * kFeatures, j * kFeatures, Part::kUpper, h);
        }
      }
    });
  }
}

void accumulate_product(MatrixView<const float> a, MatrixView<const float> b,
                        MatrixView<double> c) {
  QUERN_CHECK(c.rows == a.cols && c.cols == b.cols && a.rows == b.rows);
  Matrix<float> a_features(a.cols, kStride), b_features(b.cols, kStride);
  const MatrixView<const float> fa = a_features.view(), fb = b_features.view();
  for (int64_t t = 0; t < a.rows; t += kTokens) {
    const int64_t n = std::min(kTokens, a.rows - t);
    transpose(a.row_range(t, n), a_features.view());
    transpose(b.row_range(t, n), b_features.view());
    parallel_for(ceil_div(a.cols, kFeatures), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < b.cols; j += kFeatures) {
          add_tile(fa, fb, n, i * kFeatures, j, Part::kAll, c);
        }
      }
    });
  }
}

}  // namespace quern
