// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/checked.h"
#include "base/parallel.h"
#include "codecs/additive.h"

namespace quern {
namespace {

// What block j of row i decodes to with a scale of one.
void add_points(const AdditiveCoded& coded, const AdditiveBooks& books, int64_t i, int64_t j,
                float* sum) {
  std::fill_n(sum, books.dim, 0.0f);
  for (int m = 0; m < books.books; ++m) {
    const float* point = books.point(m, coded.code(i, j, m));
    for (int t = 0; t < books.dim; ++t) sum[t] += point[t];
  }
}

class BooksPart final : public LinearPart {
 public:
  BooksPart(AdditiveCoded coded, std::function<void(const AdditiveBooks&)> store)
      : coded_(std::move(coded)), store_(std::move(store)) {}

  std::vector<float> values() const override {
    return {coded_.books.values.begin(), coded_.books.values.end()};
  }

  void decode(std::span<const float> values, int64_t row, int64_t n_rows,
              float* dst) const override {
    const AdditiveBooks books = books_of(values);
    for (int64_t i = row; i < row + n_rows; ++i, dst += coded_.n_in) {
      const float scale = coded_.scales[static_cast<size_t>(i)];
      for (int64_t j = 0; j < coded_.n_in; j += books.dim) {
        float sum[kMaxAdditiveDim];
        add_points(coded_, books, i, j / books.dim, sum);
        const int64_t width = std::min<int64_t>(books.dim, coded_.n_in - j);
        for (int64_t t = 0; t < width; ++t) dst[j + t] = scale * sum[t];
      }
    }
  }

  void gather(MatrixView<const float> g, int power, std::span<double> sums) const override {
    const AdditiveBooks& books = coded_.books;
    parallel_for(books.books, 1, [&](int64_t m, int64_t) {
      double* book = sums.data() + m * books.k * books.dim;
      for (int64_t i = 0; i < g.rows; ++i) {
        const double scale = coded_.scales[static_cast<size_t>(i)];
        const double slope = power == 2 ? scale * scale : scale;
        for (int64_t j = 0; j < g.cols; j += books.dim) {
          double* sum = book + coded_.code(i, j / books.dim, static_cast<int>(m)) * books.dim;
          const int64_t width = std::min<int64_t>(books.dim, g.cols - j);
          for (int64_t t = 0; t < width; ++t) sum[t] += slope * g(i, j + t);
        }
      }
    });
  }

  void store(std::span<const float> values) override { store_(books_of(values)); }

 private:
  AdditiveBooks books_of(std::span<const float> values) const {
    AdditiveBooks books(coded_.books.books, coded_.books.k, coded_.books.dim);
    std::copy(values.begin(), values.end(), books.values.begin());
    return books;
  }

  AdditiveCoded coded_;
  std::function<void(const AdditiveBooks&)> store_;
};

class ScalesPart final : public LinearPart {
 public:
  ScalesPart(const AdditiveCoded& coded, std::function<void(std::span<const float>)> store)
      : scales_(coded.scales), store_(std::move(store)), unscaled_(coded.n_out(), coded.n_in) {
    const int dim = coded.books.dim;
    for (int64_t i = 0; i < unscaled_.rows(); ++i) {
      for (int64_t j = 0; j < coded.n_in; j += dim) {
        float sum[kMaxAdditiveDim];
        add_points(coded, coded.books, i, j / dim, sum);
        std::copy_n(sum, std::min<int64_t>(dim, coded.n_in - j), unscaled_.row(i) + j);
      }
    }
  }

  std::vector<float> values() const override { return scales_; }
  void decode(std::span<const float> values, int64_t row, int64_t n_rows,
              float* dst) const override {
    for (int64_t i = row; i < row + n_rows; ++i) {
      for (int64_t j = 0; j < unscaled_.cols(); ++j) {
        *dst++ = values[static_cast<size_t>(i)] * unscaled_(i, j);
      }
    }
  }
  void gather(MatrixView<const float> g, int power, std::span<double> sums) const override {
    for (int64_t i = 0; i < g.rows; ++i) {
      for (int64_t j = 0; j < g.cols; ++j) {
        const double slope = unscaled_(i, j);
        sums[static_cast<size_t>(i)] += (power == 2 ? slope * slope : slope) * g(i, j);
      }
    }
  }
  void store(std::span<const float> values) override { store_(values); }

 private:
  std::vector<float> scales_;
  std::function<void(std::span<const float>)> store_;
  Matrix<float> unscaled_;  // [n_out, n_in]
};

}  // namespace

std::unique_ptr<LinearPart> additive_books_part(AdditiveCoded coded,
                                                std::function<void(const AdditiveBooks&)> store) {
  return std::make_unique<BooksPart>(std::move(coded), std::move(store));
}

std::unique_ptr<LinearPart> additive_scales_part(
    const AdditiveCoded& coded, std::function<void(std::span<const float>)> store) {
  return std::make_unique<ScalesPart>(coded, std::move(store));
}

}  // namespace quern
