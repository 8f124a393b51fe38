// SPDX-License-Identifier: Apache-2.0
// With residual r, the cost of adding point c is r G r^T - 2 (r G . c - c G c^T / 2): what stands
// in brackets, the score, is a sum over rows of coordinates (axpy_rows) that starts from a table of
// offsets. So all points are compared by one kernel whose bits are the same everywhere.
#include <algorithm>
#include <cstring>
#include <limits>

#include "codecs/additive.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kChunk = 1024;  // points scored at a time: a few rows of them stay in the cache
constexpr int64_t kBatch = 8;     // vectors

struct Candidate {
  float cost;
  uint16_t parent, code;
};

// The best of all candidates that were offered, by rising cost.
class Beam {
 public:
  explicit Beam(size_t keep) : keep_(keep) { kept_.reserve(keep); }
  const std::vector<Candidate>& kept() const { return kept_; }

  // Adding points [first, first + n) of these scores to a partial sum of cost `base`.
  void offer(const float* scores, int64_t n, float base, uint16_t parent, int64_t first) {
    const float most = kernels().max(scores, n);
    if (kept_.size() == keep_ && !(base - 2 * most < kept_.back().cost)) return;
    if (keep_ == 1) {
      const int64_t place = std::find(scores, scores + n, most) - scores;
      return insert({base - 2 * most, parent, static_cast<uint16_t>(first + place)});
    }
    for (int64_t j = 0; j < n; j += kStrip) {
      const int64_t end = std::min(j + kStrip, n);
      if (kept_.size() == keep_) {
        const float limit = kept_.back().cost;
        int better = 0;
        for (int64_t c = j; c < end; ++c) better |= base - 2 * scores[c] < limit ? 1 : 0;
        if (better == 0) continue;
      }
      for (int64_t c = j; c < end; ++c) {
        const float cost = base - 2 * scores[c];
        if (kept_.size() < keep_ || cost < kept_.back().cost) {
          insert({cost, parent, static_cast<uint16_t>(first + c)});
        }
      }
    }
  }

 private:
  static constexpr int64_t kStrip = 32;

  void insert(const Candidate& candidate) {
    if (kept_.size() == keep_) kept_.pop_back();
    const auto place =
        std::upper_bound(kept_.begin(), kept_.end(), candidate,
                         [](const Candidate& a, const Candidate& b) { return a.cost < b.cost; });
    kept_.insert(place, candidate);
  }

  size_t keep_;
  std::vector<Candidate> kept_;
};

}  // namespace

AdditiveBooks::AdditiveBooks(int books, int64_t k, int dim)
    : books(books), k(k), dim(dim), values(static_cast<size_t>(books * k * dim)) {}

Matrix<float> additive_columns(const AdditiveBooks& books) {
  Matrix<float> columns(books.books * books.dim, books.k);
  for (int m = 0; m < books.books; ++m) {
    for (int64_t c = 0; c < books.k; ++c) {
      for (int t = 0; t < books.dim; ++t) columns(m * books.dim + t, c) = books.point(m, c)[t];
    }
  }
  return columns;
}

struct AdditiveSearch::Sum {
  float rest[kMaxAdditiveDim];
  uint16_t codes[kMaxAdditiveBooks];
};

AdditiveSearch::AdditiveSearch(const AdditiveBooks& books, const Matrix<float>& columns,
                               MatrixView<const float> metric, int beam)
    : books_(books),
      columns_(columns),
      metric_(books.dim, books.dim),
      offsets_(books.books, books.k),
      beam_(beam) {
  const int dim = books.dim;
  for (int64_t t = 0; t < metric.rows; ++t) {
    for (int64_t u = 0; u < metric.rows; ++u) metric_(t, u) = metric(t, u);
  }
  Matrix<float> slopes(dim, kChunk);
  for (int m = 0; m < books.books; ++m) {
    for (int64_t c = 0; c < books.k; c += kChunk) {
      const int64_t n = std::min(kChunk, books.k - c);
      std::fill_n(slopes.data(), dim * kChunk, 0.0f);
      kernels().axpy_rows(metric_.data(), dim, dim, columns.row(m * dim) + c, books.k, dim, n,
                          slopes.data(), kChunk);
      float* offset = offsets_.row(m) + c;
      for (int t = 0; t < dim; ++t) {
        const float *slope = slopes.row(t), *point = columns.row(m * dim + t) + c;
        for (int64_t i = 0; i < n; ++i) offset[i] -= 0.5f * slope[i] * point[i];
      }
    }
  }
}

void AdditiveSearch::slope_of(const float* x, float* slope) const {
  const int dim = books_.dim;
  std::fill_n(slope, dim, 0.0f);
  for (int t = 0; t < dim; ++t) {
    for (int u = 0; u < dim; ++u) slope[u] += x[t] * metric_(t, u);
  }
}

float AdditiveSearch::form(const float* x) const {
  float slope[kMaxAdditiveDim], sum = 0;
  slope_of(x, slope);
  for (int t = 0; t < books_.dim; ++t) sum += slope[t] * x[t];
  return std::max(sum, 0.0f);
}

float AdditiveSearch::cost_of(const float* x, const uint16_t* codes) const {
  float rest[kMaxAdditiveDim];
  std::copy_n(x, books_.dim, rest);
  for (int m = 0; m < books_.books; ++m) {
    const float* point = books_.point(m, codes[m]);
    for (int t = 0; t < books_.dim; ++t) rest[t] -= point[t];
  }
  return form(rest);
}

// Scores of points [c, c + n) for n_x slopes.
static void score(const Matrix<float>& columns, const Matrix<float>& offsets, int book, int dim,
                  const float* slope, int64_t n_x, int64_t c, int64_t n, float* scores) {
  for (int64_t i = 0; i < n_x; ++i) {
    std::memcpy(scores + i * kChunk, offsets.row(book) + c, static_cast<size_t>(n) * sizeof(float));
  }
  kernels().axpy_rows(slope, dim, n_x, columns.row(book * dim) + c, columns.cols(), dim, n, scores,
                      kChunk);
}

// The points of the highest scores for n <= kBatch slopes [n, dim].
void AdditiveSearch::nearest(int book, const float* slope, int64_t n, uint16_t* code) const {
  alignas(64) float scores[kBatch * kChunk];
  float best[kBatch];
  std::fill_n(best, n, -std::numeric_limits<float>::infinity());
  std::fill_n(code, n, uint16_t{0});
  for (int64_t c = 0; c < books_.k; c += kChunk) {
    const int64_t width = std::min(kChunk, books_.k - c);
    score(columns_, offsets_, book, books_.dim, slope, n, c, width, scores);
    for (int64_t i = 0; i < n; ++i) {
      const float* row = scores + i * kChunk;
      const float most = kernels().max(row, width);
      if (!(most > best[i])) continue;
      best[i] = most;
      code[i] = static_cast<uint16_t>(c + (std::find(row, row + width, most) - row));
    }
  }
}

// The beam: from each partial sum all points of the next book, of which the best are kept.
void AdditiveSearch::extend(int book, size_t keep, std::vector<Sum>& sums) const {
  const int dim = books_.dim;
  alignas(64) float scores[kBatch * kChunk];
  Beam best(keep);
  for (size_t first = 0; first < sums.size(); first += kBatch) {
    const auto n = static_cast<int64_t>(std::min<size_t>(kBatch, sums.size() - first));
    float slope[kBatch * kMaxAdditiveDim], base[kBatch];
    for (int64_t i = 0; i < n; ++i) {
      const float* rest = sums[first + static_cast<size_t>(i)].rest;
      slope_of(rest, slope + i * dim);
      base[i] = 0;
      for (int t = 0; t < dim; ++t) base[i] += slope[i * dim + t] * rest[t];
    }
    for (int64_t c = 0; c < books_.k; c += kChunk) {
      const int64_t width = std::min(kChunk, books_.k - c);
      score(columns_, offsets_, book, dim, slope, n, c, width, scores);
      for (int64_t i = 0; i < n; ++i) {
        const float* row = scores + i * kChunk;
        best.offer(row, width, base[i], static_cast<uint16_t>(first + static_cast<size_t>(i)), c);
      }
    }
  }
  std::vector<Sum> next;
  for (const Candidate& candidate : best.kept()) {
    Sum& sum = next.emplace_back(sums[candidate.parent]);
    sum.codes[book] = candidate.code;
    const float* point = books_.point(book, candidate.code);
    for (int t = 0; t < dim; ++t) sum.rest[t] -= point[t];
  }
  sums = std::move(next);
}

void AdditiveSearch::code(const float* x, int64_t n, Start start, uint16_t* codes,
                          float* cost) const {
  const int dim = books_.dim, m = books_.books;
  for (int64_t first = 0; first < n; first += kBatch) {
    const int64_t count = std::min(kBatch, n - first);
    uint16_t found[kBatch * kMaxAdditiveBooks] = {};
    if (m == 1) {
      float slope[kBatch * kMaxAdditiveDim];
      for (int64_t i = 0; i < count; ++i) slope_of(x + (first + i) * dim, slope + i * dim);
      nearest(0, slope, count, found);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* vector = x + (first + i) * dim;
      if (m > 1) {
        std::vector<Sum> sums(1);
        std::copy_n(vector, dim, sums[0].rest);
        for (int book = 0; book < m; ++book) {
          extend(book, book + 1 == m ? 1 : static_cast<size_t>(beam_), sums);
        }
        std::copy_n(sums[0].codes, m, found + i * m);
      }
      float& least = cost[first + i];
      least = cost_of(vector, found + i * m);
      uint16_t* kept = codes + (first + i) * m;
      if (start == Start::kKeep) {
        const float before = cost_of(vector, kept);
        if (before <= least) {
          least = before;
          continue;
        }
      }
      std::copy_n(found + i * m, m, kept);
    }
  }
}

}  // namespace quern
