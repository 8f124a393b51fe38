// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <numeric>

#include "base/parallel.h"
#include "base/random.h"
#include "codecs/additive.h"

namespace quern {
namespace {

constexpr int64_t kProbes = 12;    // cells searched in large books, beside 32 when coding
constexpr float kOvershoot = .9f;  // of k-means before its last step: half as many steps are needed
constexpr uint64_t kSeed = 0x61646469;
constexpr double kClusterTolerance = 3e-3, kJointTolerance = 1.5e-3;  // of the loss, to go on

// Puts points beside their neighbours: halves along the widest coordinate, of halves, down to
// cells.
void sort_into_cells(AdditiveBooks& one) {
  const int dim = one.dim;
  std::vector<int64_t> order(static_cast<size_t>(one.k));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t width = one.k; width > kAdditiveCell; width /= 2) {
    parallel_for(one.k, width, [&](int64_t begin, int64_t end) {
      double sum[kMaxAdditiveDim] = {}, squares[kMaxAdditiveDim] = {}, widest = -1;
      const auto first = order.begin() + begin, last = order.begin() + end;
      for (auto c = first; c != last; ++c) {
        for (int t = 0; t < dim; ++t) {
          const double value = one.point(0, *c)[t];
          sum[t] += value;
          squares[t] += value * value;
        }
      }
      int axis = 0;
      for (int t = 0; t < dim; ++t) {
        const double spread = squares[t] - sum[t] * sum[t] / static_cast<double>(width);
        if (spread > widest) widest = spread, axis = t;
      }
      std::nth_element(first, first + width / 2, last, [&](int64_t a, int64_t b) {
        return one.point(0, a)[axis] < one.point(0, b)[axis];
      });
    });
  }
  AdditiveBooks sorted = one;
  for (int64_t c = 0; c < one.k; ++c) {
    std::copy_n(one.point(0, order[static_cast<size_t>(c)]), dim, sorted.point(0, c));
  }
  one = std::move(sorted);
}

// Vectors by column of blocks, then row: those of a column share a metric.
class Fitter {
 public:
  Fitter(const AdditiveSample& sample, const AdditiveFit& options, AdditiveBooks& books)
      : weight_(sample.weight),
        options_(options),
        books_(books),
        rows_(sample.x.rows()),
        blocks_(sample.x.cols() / books.dim),
        x_(rows_ * blocks_, books.dim),
        cost_(static_cast<size_t>(x_.rows())) {
    for (int64_t v = 0; v < x_.rows(); ++v) {
      std::copy_n(sample.x.row(v % rows_) + v / rows_ * books.dim, books.dim, x_.row(v));
    }
  }

  double run() {
    const int64_t n = x_.rows();
    const int m = books_.books;
    std::vector<uint16_t> all(static_cast<size_t>(n * m)), codes(static_cast<size_t>(n));
    Matrix<float> rest = x_;
    double loss = 0;
    for (int book = 0; book < m; ++book) {
      AdditiveBooks one(1, books_.k, books_.dim);
      loss = cluster(rest, one, codes);
      std::copy(one.values.begin(), one.values.end(), books_.point(book, 0));
      for (int64_t v = 0; v < n; ++v) {
        const uint16_t code = codes[static_cast<size_t>(v)];
        all[static_cast<size_t>(v * m + book)] = code;
        for (int t = 0; t < books_.dim; ++t) rest(v, t) -= one.point(0, code)[t];
      }
    }
    bool is_settled = m == 1;
    for (int i = 0; i < options_.iterations && !is_settled && loss > 0; ++i) {
      const double now = assign(x_, books_, AdditiveSearch::Start::kKeep, all);
      is_settled = i + 1 == options_.iterations || !(now < loss * (1 - kJointTolerance));
      loss = std::min(loss, now);
      for (int book = 0; book < m; ++book) take_means(book, all, is_settled ? 0 : kOvershoot);
    }
    double mass = 0;
    for (const float h : weight_) mass += h;
    return mass > 0 ? loss / (mass * static_cast<double>(rows_)) : 0;
  }

 private:
  // Codes all vectors; returns their weighted loss.
  double assign(const Matrix<float>& x, const AdditiveBooks& books, AdditiveSearch::Start start,
                std::vector<uint16_t>& codes) {
    const int dim = books.dim;
    const AdditiveCells cells(books);
    parallel_for(blocks_, 1, [&](int64_t j, int64_t) {
      Matrix<float> metric(dim, dim);
      for (int t = 0; t < dim; ++t) metric(t, t) = weight_[static_cast<size_t>(j * dim + t)];
      const AdditiveSearch search(books, cells, metric.view(), options_.beam, kProbes);
      search.code(x.row(j * rows_), rows_, start, codes.data() + j * rows_ * books.books,
                  cost_.data() + j * rows_);
    });
    return std::accumulate(cost_.begin(), cost_.end(), 0.0);
  }

  // Distinct vectors, or all of them and zeros where there are fewer than points.
  void seed(const Matrix<float>& x, AdditiveBooks& one) const {
    Random random(kSeed);
    std::vector<int64_t> order(static_cast<size_t>(x.rows()));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t c = 0; c < std::min(one.k, x.rows()); ++c) {
      const auto left = static_cast<uint64_t>(x.rows() - c);
      std::swap(order[static_cast<size_t>(c)],
                order[static_cast<size_t>(c) + static_cast<size_t>(random.below(left))]);
      std::copy_n(x.row(order[static_cast<size_t>(c)]), one.dim, one.point(0, c));
    }
  }

  // k-means of x; empty clusters move to the vectors that are served worst.
  double cluster(const Matrix<float>& x, AdditiveBooks& one, std::vector<uint16_t>& codes) {
    seed(x, one);
    double last = std::numeric_limits<double>::infinity();
    bool is_settled = false;
    for (int i = 0;; ++i) {
      sort_into_cells(one);
      const double loss = assign(x, one, AdditiveSearch::Start::kFresh, codes);
      if (i == options_.iterations || is_settled) return loss;
      is_settled = i + 1 == options_.iterations || !(loss < last * (1 - kClusterTolerance));
      last = loss;
      const std::vector<int64_t> empty =
          move_to_means(0, x, codes, 1, 0, is_settled ? 0 : kOvershoot, one);
      std::vector<int64_t> worst(static_cast<size_t>(x.rows()));
      std::iota(worst.begin(), worst.end(), 0);
      const auto moved = static_cast<int64_t>(std::min(empty.size(), worst.size()));
      std::partial_sort(worst.begin(), worst.begin() + moved, worst.end(),
                        [&](int64_t a, int64_t b) {
                          const float cost_a = cost_[static_cast<size_t>(a)],
                                      cost_b = cost_[static_cast<size_t>(b)];
                          return cost_a != cost_b ? cost_a > cost_b : a < b;
                        });
      for (int64_t e = 0; e < moved; ++e) {
        std::copy_n(x.row(worst[static_cast<size_t>(e)]), one.dim,
                    one.point(0, empty[static_cast<size_t>(e)]));
      }
    }
  }

  // Points of a book become the means of the vectors x that they serve, or go past these by
  // `overshoot` times the way, which raises no loss up to once the way; returns those that serve
  // none. Code v is codes[v * stride + offset].
  std::vector<int64_t> move_to_means(int book, const Matrix<float>& x,
                                     const std::vector<uint16_t>& codes, int stride, int offset,
                                     float overshoot, AdditiveBooks& books) const {
    Matrix<double> sum(books.k, books.dim), mass(books.k, books.dim);
    std::vector<bool> serves(static_cast<size_t>(books.k));
    for (int64_t v = 0; v < x.rows(); ++v) {
      const uint16_t c = codes[static_cast<size_t>(v * stride + offset)];
      serves[c] = true;
      for (int t = 0; t < books.dim; ++t) {
        const double h = weight_[static_cast<size_t>(v / rows_ * books.dim + t)];
        sum(c, t) += h * x(v, t);
        mass(c, t) += h;
      }
    }
    std::vector<int64_t> empty;
    for (int64_t c = 0; c < books.k; ++c) {
      if (!serves[static_cast<size_t>(c)]) empty.push_back(c);
      for (int t = 0; t < books.dim; ++t) {
        if (!(mass(c, t) > 0)) continue;
        const auto mean = static_cast<float>(sum(c, t) / mass(c, t));
        float& value = books.point(book, c)[t];
        value = mean + overshoot * (mean - value);
      }
    }
    return empty;
  }

  // One book becomes the means of what the others leave.
  void take_means(int book, const std::vector<uint16_t>& all, float overshoot) {
    const int m = books_.books;
    Matrix<float> rest = x_;
    for (int64_t v = 0; v < rest.rows(); ++v) {
      for (int other = 0; other < m; ++other) {
        if (other == book) continue;
        const float* point = books_.point(other, all[static_cast<size_t>(v * m + other)]);
        for (int t = 0; t < books_.dim; ++t) rest(v, t) -= point[t];
      }
    }
    move_to_means(book, rest, all, m, book, overshoot, books_);
  }

  const std::vector<float>& weight_;
  AdditiveFit options_;
  AdditiveBooks& books_;
  int64_t rows_, blocks_;
  Matrix<float> x_;          // [blocks * rows, dim]
  std::vector<float> cost_;  // of each vector as it was coded last
};

}  // namespace

double additive_fit(const AdditiveSample& sample, const AdditiveFit& options,
                    AdditiveBooks& books) {
  return Fitter(sample, options, books).run();
}

}  // namespace quern
