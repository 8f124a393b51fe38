// SPDX-License-Identifier: Apache-2.0
#include "transforms/duquant_rotation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/decompose.h"

namespace quern {
namespace {

// a <- a b for square matrices.
void multiply(Matrix<double>& a, const Matrix<double>& b) {
  const int64_t n = a.rows();
  std::vector<double> row(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t j = 0; j < n; ++j) {
      const double s = a(i, j);
      const double* from = b.row(j);
      for (int64_t c = 0; c < n; ++c) row[static_cast<size_t>(c)] += s * from[c];
    }
    std::copy(row.begin(), row.end(), a.row(i));
  }
}

// E_j (R~ Q) E_j or E_j (Q R~) E_j.
Matrix<double> step(const Matrix<double>& flat, RandomSide side, int64_t j, Random& random) {
  const int64_t n = flat.rows();
  Matrix<double> q(n, n);
  q(0, 0) = 1;
  if (n > 1) {
    const Matrix<double> inner = random_orthogonal(n - 1, random);
    for (int64_t i = 1; i < n; ++i) std::copy_n(inner.row(i - 1), n - 1, q.row(i) + 1);
  }
  Matrix<double> r = side == RandomSide::kRight ? flat : q;
  multiply(r, side == RandomSide::kRight ? q : flat);
  if (j == 0) return r;
  std::swap_ranges(r.row(0), r.row(0) + n, r.row(j));
  for (int64_t i = 0; i < n; ++i) std::swap(r(i, 0), r(i, j));
  return r;
}

// All blocks of all rows, the longest first.
struct Pieces {
  Matrix<float> values;        // [n_pieces, block]
  std::vector<double> length;  // [n_pieces], falling

  Pieces(MatrixView<const float> rows, int64_t block) {
    std::vector<std::pair<double, const float*>> found;
    for (int64_t i = 0; i < rows.rows; ++i) {
      for (int64_t j = 0; j < rows.cols; j += block) {
        const float* piece = rows.row(i) + j;
        double squares = 0;
        for (int64_t c = 0; c < block; ++c) squares += static_cast<double>(piece[c]) * piece[c];
        if (squares > 0) found.emplace_back(std::sqrt(squares), piece);
      }
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    values = Matrix<float>(static_cast<int64_t>(found.size()), block);
    for (size_t i = 0; i < found.size(); ++i) {
      std::copy_n(found[i].second, block, values.row(static_cast<int64_t>(i)));
      length.push_back(found[i].first);
    }
  }
};

struct Extremes {
  float largest = 0, smallest = 0;  // of values, at least and at most 0
  int64_t channel = 0;              // of the largest |z|, the first of equals

  float abs_max() const { return std::max(largest, -smallest); }
  double peak(Peak kind) const { return kind == Peak::kRange ? largest - smallest : abs_max(); }
  void take(const Extremes& other) {
    if (other.abs_max() > abs_max()) channel = other.channel;
    largest = std::max(largest, other.largest);
    smallest = std::min(smallest, other.smallest);
  }
};

constexpr int64_t kTile = 64;  // pieces at once

// Of pieces [begin, end) times r, given turned.
Extremes extremes_of(const Pieces& pieces, int64_t begin, int64_t end,
                     const Matrix<float>& turned) {
  const int64_t n = turned.rows();
  Extremes found;
  AlignedVector<float> z(static_cast<size_t>(kTile * n));
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t count = std::min(kTile, end - i);
    kernels().dot_tile(pieces.values.row(i), n, count, turned.data(), n, n, n, z.data(), n);
    Extremes tile;
    const auto [low, high] = std::minmax_element(z.data(), z.data() + count * n);
    tile.largest = std::max(0.0f, *high);
    tile.smallest = std::min(0.0f, *low);
    const float most = tile.abs_max();
    const float* at =
        std::find_if(z.data(), z.data() + count * n, [&](float v) { return std::abs(v) == most; });
    tile.channel = (at - z.data()) % n;
    found.take(tile);
  }
  return found;
}

// Of all pieces times r: those first that are longest, then what is longer than both extremes.
Extremes extremes_of(const Pieces& pieces, const Matrix<double>& r, Peak kind) {
  const int64_t n = r.rows(), n_pieces = pieces.values.rows();
  Matrix<float> turned(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) turned(j, i) = static_cast<float>(r(i, j));
  }
  const int64_t first = std::min(kTile, n_pieces);
  Extremes found = extremes_of(pieces, 0, first, turned);
  const double enough =
      (kind == Peak::kRange ? std::min(found.largest, -found.smallest) : found.abs_max()) *
      (1 - 1e-6);  // products in single precision may be a little longer than their pieces
  const auto last = std::partition_point(pieces.length.begin(), pieces.length.end(),
                                         [&](double length) { return length > enough; }) -
                    pieces.length.begin();
  const int64_t n_tiles = ceil_div(std::max<int64_t>(0, last - first), kTile);
  std::vector<Extremes> parts(static_cast<size_t>(n_tiles));
  parallel_for(n_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t from = first + t * kTile;
      parts[static_cast<size_t>(t)] =
          extremes_of(pieces, from, std::min<int64_t>(from + kTile, last), turned);
    }
  });
  for (const Extremes& part : parts) found.take(part);
  return found;
}

Matrix<double> identity(int64_t n) {
  Matrix<double> e(n, n);
  for (int64_t i = 0; i < n; ++i) e(i, i) = 1;
  return e;
}

}  // namespace

Matrix<double> flat_rotation(int64_t n) {
  Matrix<double> r = identity(n);
  for (int64_t i = 0; i + 1 < n; ++i) {
    const auto at = static_cast<double>(i);
    const double c = 1 / std::sqrt(at + 2), s = std::sqrt((at + 1) / (at + 2));
    for (int64_t j = 0; j < n; ++j) {
      const double a = r(i, j), b = r(i + 1, j);
      r(i, j) = c * a - s * b;
      r(i + 1, j) = s * a + c * b;
    }
  }
  if (n < 2) return r;
  std::swap_ranges(r.row(0), r.row(0) + n, r.row(n - 1));
  for (int64_t i = 0; i < n; ++i) std::swap(r(i, 0), r(i, n - 1));
  return r;
}

GreedyRotation greedy_rotation(MatrixView<const float> values, const GreedyOptions& options,
                               Random& random) {
  const int64_t n = options.block;
  QUERN_CHECK(n > 0 && values.cols % n == 0);
  const Pieces pieces(values, n);
  const Matrix<double> flat = flat_rotation(n);
  GreedyRotation best;
  Matrix<double> product = best.rotation = identity(n);
  Extremes now = extremes_of(pieces, product, options.peak);
  best.peak_before = best.peak = now.peak(options.peak);
  for (int k = 1; k <= options.steps && best.peak_before > 0; ++k) {
    multiply(product, step(flat, options.side, now.channel, random));
    now = extremes_of(pieces, product, options.peak);
    if (now.peak(options.peak) >= best.peak) continue;
    best.peak = now.peak(options.peak);
    best.steps = k;
    best.rotation = product;
  }
  return best;
}

std::vector<int32_t> zigzag(std::span<const float> size, int64_t block) {
  const auto n = static_cast<int64_t>(size.size());
  QUERN_CHECK(block > 0 && n % block == 0);
  std::vector<int32_t> order(size.size()), perm(size.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return size[static_cast<size_t>(a)] > size[static_cast<size_t>(b)];
  });
  const int64_t n_blocks = n / block;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t round = i / n_blocks, turn = i % n_blocks;
    const int64_t b = round % 2 == 0 ? turn : n_blocks - 1 - turn;
    perm[static_cast<size_t>(b * block + round)] = order[static_cast<size_t>(i)];
  }
  return perm;
}

}  // namespace quern
