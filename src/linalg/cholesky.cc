// SPDX-License-Identifier: Apache-2.0
// From the last columns to the first, on the upper triangle alone. Once the columns after them are
// taken out, columns J of H = M D M^T give, with X = M D,
//
//   the diagonal tile   M_JJ D_J M_JJ^T = H_JJ    these same steps, eight columns at a time
//   the rows above it   X_IJ M_JJ^T = H_IJ        solved from the last column to the first
//                       M_IJ = X_IJ / D_J
//   what is left        H_IK -= M_IJ X_KJ^T       I <= K < J
//
// Nearly all of it is subtract_rows (kernels.h), which defines every element to the bit; the rest
// is written out in plain operations. Tiles are cut by size alone. So the factor depends neither on
// the instruction set nor on the number of threads.
//
// subtract_rows wants columns side by side, so X is kept transposed: kTile columns of rows at a
// time, [n_j, kStride]. M is copied to rows of its own, [n, kTile]: in H, rows a power of two apart
// share a cache set. At n = 4096 tiles of 96 run at 84 % of the speed of tiles of 144 (the matrix
// passes through memory more often), tiles of 192 at 90 % (columns of X fill the first cache); at
// n = 1024 at 95 and 81 %.
#include "linalg/cholesky.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"

namespace quern {
namespace {

constexpr int64_t kTile = 144;          // a multiple of the widest block of subtract_rows, 24
constexpr int64_t kStride = kTile + 8;  // an odd number of lines: rows spread over cache sets
constexpr int64_t kStep = 8;            // columns of a tile that are factored together

// h[i, j] of the square [first, first + n) on the diagonal.
template <class T>
MatrixView<T> square(MatrixView<T> h, int64_t first, int64_t n) {
  return h.row_range(first, n).col_range(first, n);
}

// The transposed rows of X, and M, of one tile of rows above the columns being taken out.
struct Panel {
  double* x;  // [n_j, kStride]
  double* m;  // [rows, kTile]
};

// H [n_j, n_j], kStep at most, becomes M above the diagonal and D on it. On failure returns which
// pivot is not above `least`, or else -1.
int64_t factor_step(MatrixView<double> h, const double* least) {
  for (int64_t j = h.rows - 1; j >= 0; --j) {
    const double pivot = h(j, j);
    if (!(pivot > least[j]) || !std::isfinite(pivot)) return j;
    double x[kStep];
    for (int64_t i = 0; i < j; ++i) {
      x[i] = h(i, j);
      h(i, j) = x[i] / pivot;
    }
    for (int64_t i = 0; i < j; ++i) {
      for (int64_t k = i; k < j; ++k) h(i, k) -= h(i, j) * x[k];
    }
  }
  return -1;
}

// Solves X M^T = H for rows [rows, n_j] of H, M unit upper triangular with D on its diagonal:
// fills the panel and writes M to H.
void solve(const KernelTable& table, MatrixView<const double> m, MatrixView<double> h,
           const Panel& panel) {
  const int64_t n_j = m.rows;
  for (int64_t r = 0; r < h.rows; ++r) {
    for (int64_t c = 0; c < n_j; ++c) panel.x[c * kStride + r] = h(r, c);
  }
  const auto subtract = [&](int64_t first, int64_t n, int64_t from, int64_t n_from) {
    table.subtract_rows(&m(first, from), m.stride, n, panel.x + from * kStride, kStride, n_from,
                        h.rows, panel.x + first * kStride, kStride);
  };
  for (int64_t end = n_j; end > 0; end -= std::min(kStep, end)) {
    const int64_t begin = std::max<int64_t>(end - kStep, 0);
    if (end < n_j) subtract(begin, end - begin, end, n_j - end);
    for (int64_t c = end - 2; c >= begin; --c) subtract(c, 1, c + 1, end - c - 1);
  }
  for (int64_t c = 0; c < n_j; ++c) {
    const double pivot = m(c, c);
    for (int64_t r = 0; r < h.rows; ++r) panel.m[r * kTile + c] = panel.x[c * kStride + r] / pivot;
  }
  for (int64_t r = 0; r < h.rows; ++r) std::copy_n(panel.m + r * kTile, n_j, h.row(r));
}

// H -= M X^T on and above the diagonal of a tile (some of what lies below changes too).
void subtract_diagonal(const KernelTable& table, const Panel& panel, int64_t n_j,
                       MatrixView<double> h) {
  constexpr int64_t kStrip = 24;
  for (int64_t i = 0; i < h.rows; i += kStrip) {
    table.subtract_rows(panel.m + i * kTile, kTile, std::min(kStrip, h.rows - i), panel.x + i,
                        kStride, n_j, h.rows - i, &h(i, i), h.stride);
  }
}

// As factor_step, for a tile.
int64_t factor_tile(const KernelTable& table, MatrixView<double> h, const double* least) {
  alignas(64) double x[kStep * kStride], m[kTile * kTile];
  const Panel panel{x, m};
  for (int64_t end = h.rows; end > 0; end -= std::min(kStep, end)) {
    const int64_t begin = std::max<int64_t>(end - kStep, 0), n_j = end - begin;
    const int64_t bad = factor_step(square(h, begin, n_j), least + begin);
    if (bad >= 0) return begin + bad;
    if (begin == 0) break;
    solve(table, square(h, begin, n_j), h.row_range(0, begin).col_range(begin, n_j), panel);
    subtract_diagonal(table, panel, n_j, square(h, 0, begin));
  }
  return -1;
}

// All tiles (i, k), i <= k < n_tiles, in a fixed order.
std::vector<std::pair<int64_t, int64_t>> upper_tiles(int64_t n_tiles) {
  std::vector<std::pair<int64_t, int64_t>> tiles;
  for (int64_t i = 0; i < n_tiles; ++i) {
    for (int64_t k = i; k < n_tiles; ++k) tiles.emplace_back(i, k);
  }
  return tiles;
}

// Takes the columns of diagonal tile j, which is factored, out of the tiles before it. Those are
// whole; tile j, of n_j columns, may be the short last one.
void eliminate(const KernelTable& table, MatrixView<double> h, int64_t j, int64_t n_j,
               std::vector<Panel>& panels) {
  const MatrixView<const double> diagonal = square(h, j * kTile, n_j);
  parallel_for(j, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      solve(table, diagonal, h.row_range(i * kTile, kTile).col_range(j * kTile, n_j),
            panels[static_cast<size_t>(i)]);
    }
  });
  const auto tiles = upper_tiles(j);
  parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const auto [i, k] = tiles[static_cast<size_t>(t)];
      const Panel &rows = panels[static_cast<size_t>(i)], &columns = panels[static_cast<size_t>(k)];
      if (i == k) {
        subtract_diagonal(table, rows, n_j, square(h, i * kTile, kTile));
      } else {
        table.subtract_rows(rows.m, kTile, kTile, columns.x, kStride, n_j, kTile,
                            &h(i * kTile, k * kTile), h.stride);
      }
    }
  });
}

}  // namespace

Status reverse_cholesky(MatrixView<double> h, const KernelTable& table) {
  QUERN_CHECK(h.rows == h.cols);
  const int64_t n = h.rows, n_tiles = ceil_div(n, kTile);
  std::vector<double> least;  // what the pivots must exceed
  for (int64_t i = 0; i < n; ++i) {
    least.push_back(4 * static_cast<double>(n) * 0x1p-52 * std::fabs(h(i, i)));
  }
  AlignedVector<double> storage(static_cast<size_t>(n_tiles * kTile * (kStride + kTile)));
  std::vector<Panel> panels;
  for (int64_t i = 0; i < n_tiles; ++i) {
    double* x = storage.data() + i * kTile * (kStride + kTile);
    panels.push_back({x, x + kTile * kStride});
  }
  for (int64_t j = n_tiles - 1; j >= 0; --j) {
    const int64_t begin = j * kTile, n_j = std::min(kTile, n - begin);
    const int64_t bad = factor_tile(table, square(h, begin, n_j), least.data() + begin);
    if (bad >= 0) {
      const int64_t i = begin + bad;
      return error(
          "cholesky: pivot {} of {} is {}, not above {}: the matrix is not positive definite", i, n,
          h(i, i), least[static_cast<size_t>(i)]);
    }
    eliminate(table, h, j, n_j, panels);
  }
  parallel_for(n, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) std::fill_n(h.row(i), i, 0.0);
  });
  return {};
}

void mirror_upper(MatrixView<double> h) {
  QUERN_CHECK(h.rows == h.cols);
  constexpr int64_t kBlock = 32;  // so that both sides of a copy stay in cache
  const int64_t n_blocks = ceil_div(h.rows, kBlock);
  parallel_for(n_blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      for (int64_t c = 0; c <= b; ++c) {
        for (int64_t i = b * kBlock; i < std::min((b + 1) * kBlock, h.rows); ++i) {
          for (int64_t j = c * kBlock; j < std::min((c + 1) * kBlock, i); ++j) h(i, j) = h(j, i);
        }
      }
    }
  });
}

}  // namespace quern
