// SPDX-License-Identifier: Apache-2.0
// From the last tile to the first, on the upper triangle alone. With U = M sqrt(D), so H = U U^T:
//
//   the diagonal tile   U_jj U_jj^T = H_jj       in scalar code (n * 128^2 / 3 steps in all)
//   tiles above it      U_ij = H_ij U_jj^-T      dtrsm
//   what is left        H_ik -= U_ij U_kj^T      dgemm, i <= k < j
//
// The BLAS is serial and sees one tile at a time; who calls it does not matter. Two must not call
// it at once: Debian builds the serial OpenBLAS without USE_LOCKING, and its buffers then race
// (60000 products of 128 x 128 from each of three threads gave 20 wrong ones).
#include "linalg/cholesky.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"

namespace quern {
namespace {

constexpr int64_t kTile = 128;

std::mutex& blas_mutex() {
  static std::mutex mutex;
  return mutex;
}

struct Pivots {
  std::vector<double> value;  // D
  std::vector<double> least;  // what they must exceed
};

// Tile [begin, end) of the diagonal becomes U in its upper triangle.
Status factor_diagonal_tile(MatrixView<double> h, int64_t begin, int64_t end, Pivots& pivots) {
  for (int64_t j = end - 1; j >= begin; --j) {
    double* row_j = h.row(j);
    double pivot = row_j[j];
    for (int64_t c = j + 1; c < end; ++c) pivot -= row_j[c] * row_j[c];
    if (!(pivot > pivots.least[static_cast<size_t>(j)]) || !std::isfinite(pivot)) {
      return error(
          "cholesky: pivot {} of {} is {}, not above {}: the matrix is not positive definite", j,
          h.rows, pivot, pivots.least[static_cast<size_t>(j)]);
    }
    pivots.value[static_cast<size_t>(j)] = pivot;
    row_j[j] = std::sqrt(pivot);
    const double reciprocal = 1 / row_j[j];
    for (int64_t i = begin; i < j; ++i) {
      double* row_i = h.row(i);
      double sum = row_i[j];
      for (int64_t c = j + 1; c < end; ++c) sum -= row_i[c] * row_j[c];
      row_i[j] = sum * reciprocal;
    }
  }
  return {};
}

// All tiles (i, k), i <= k < n_tiles, in a fixed order.
std::vector<std::pair<int64_t, int64_t>> upper_tiles(int64_t n_tiles) {
  std::vector<std::pair<int64_t, int64_t>> tiles;
  for (int64_t i = 0; i < n_tiles; ++i) {
    for (int64_t k = i; k < n_tiles; ++k) tiles.emplace_back(i, k);
  }
  return tiles;
}

// Solves the tiles above diagonal tile j and takes them out of what is left. Tiles before j are
// whole; tile j may be the short last one.
void eliminate(MatrixView<double> h, int64_t j, int64_t begin, int64_t end) {
  const auto stride = static_cast<blasint>(h.stride), width = static_cast<blasint>(end - begin);
  const auto tile = static_cast<blasint>(kTile);
  parallel_for(j, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const std::lock_guard<std::mutex> alone(blas_mutex());
      cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, tile, width, 1,
                  &h(begin, begin), stride, &h(i * kTile, begin), stride);
    }
  });
  const auto tiles = upper_tiles(j);
  parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const auto [i, k] = tiles[static_cast<size_t>(t)];
      const std::lock_guard<std::mutex> alone(blas_mutex());
      cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tile, tile, width, -1,
                  &h(i * kTile, begin), stride, &h(k * kTile, begin), stride, 1,
                  &h(i * kTile, k * kTile), stride);
    }
  });
}

}  // namespace

Status reverse_cholesky(MatrixView<double> h) {
  QUERN_CHECK(h.rows == h.cols);
  const int64_t n = h.rows;
  Pivots pivots{std::vector<double>(static_cast<size_t>(n)), {}};
  for (int64_t i = 0; i < n; ++i) {
    pivots.least.push_back(4 * static_cast<double>(n) * 0x1p-52 * std::fabs(h(i, i)));
  }
  for (int64_t j = ceil_div(n, kTile) - 1; j >= 0; --j) {
    const int64_t begin = j * kTile, end = std::min(begin + kTile, n);
    QUERN_TRY(factor_diagonal_tile(h, begin, end, pivots));
    eliminate(h, j, begin, end);
  }
  std::vector<double> reciprocal(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) reciprocal[static_cast<size_t>(j)] = 1 / h(j, j);
  parallel_for(n, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double* row = h.row(i);
      std::fill_n(row, i, 0.0);
      row[i] = pivots.value[static_cast<size_t>(i)];
      for (int64_t j = i + 1; j < n; ++j) row[j] *= reciprocal[static_cast<size_t>(j)];
    }
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
