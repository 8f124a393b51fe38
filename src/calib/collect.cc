// SPDX-License-Identifier: Apache-2.0
#include "calib/collect.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"

namespace quern {

bool InputTap::input(Role role, int expert, MatrixView<const float> x) {
  if (role != role_ || expert >= 0) return true;
  rows_ = Matrix<float>(x.rows, x.cols);
  for (int64_t i = 0; i < x.rows; ++i) std::copy_n(x.row(i), x.cols, rows_.row(i));
  return false;
}

namespace {

constexpr int kAll = -2;  // of all experts

// Rows as weights with such a rounding read them, in `rounded` where that changes them.
MatrixView<const float> as_read(const std::shared_ptr<const ActRounding>& rounding,
                                MatrixView<const float> x, Matrix<float>& rounded) {
  if (rounding == nullptr) return x;
  rounded = Matrix<float>(x.rows, x.cols);
  parallel_for(x.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rounding->values(x.row(i), x.cols, rounded.row(i));
  });
  return std::as_const(rounded).view();
}

}  // namespace

bool RangeTap::input(Role role, int expert, MatrixView<const float> x) {
  if (role != role_) return true;
  for (const int which : {expert, kAll}) {
    Range& range = ranges_[which];
    range.low.resize(static_cast<size_t>(x.cols));
    range.high.resize(static_cast<size_t>(x.cols));
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        float& low = range.low[static_cast<size_t>(j)];
        float& high = range.high[static_cast<size_t>(j)];
        low = std::min(low, x(i, j));
        high = std::max(high, x(i, j));
      }
    }
  }
  return true;
}

std::shared_ptr<const ActRounding> RangeTap::rounding(std::shared_ptr<const ActQuantizer> act,
                                                      int expert) const {
  auto it = ranges_.find(expert);
  if (it == ranges_.end()) it = ranges_.find(kAll);
  QUERN_CHECK(it != ranges_.end());
  std::vector<float> ranges = act->ranges(it->second.low, it->second.high);
  return std::make_shared<const ActRounding>(ActRounding{std::move(act), std::move(ranges)});
}

bool GramTap::input(Role role, int expert, MatrixView<const float> read) {
  if (role != role_) return true;
  if (expert >= first_expert_ && expert <= last_expert_) {
    Matrix<float> rounded;
    const MatrixView<const float> x = as_read(roundings_[expert], read, rounded);
    Gram& gram = grams_[expert];
    if (gram.sum.empty()) gram.sum = Matrix<double>(x.cols, x.cols);
    accumulate_gram(x, gram.sum.view());
    if (takes_means_) {
      gram.x.resize(static_cast<size_t>(x.cols));
      for (int64_t i = 0; i < x.rows; ++i) {
        for (int64_t j = 0; j < x.cols; ++j) gram.x[static_cast<size_t>(j)] += x(i, j);
      }
    }
    gram.n_rows += x.rows;
    if (source_ != nullptr && source_->rows() == x.rows) {
      Matrix<float> difference = *source_;
      for (int64_t i = 0; i < x.rows; ++i) {
        for (int64_t j = 0; j < x.cols; ++j) difference(i, j) -= x(i, j);
      }
      if (gram.drift.empty()) gram.drift = Matrix<double>(x.cols, x.cols);
      accumulate_product(difference.view(), x, gram.drift.view());
    }
  }
  return expert < last_expert_;
}

MatrixView<const double> GramTap::hessian(int expert) {
  const auto it = grams_.find(expert);
  if (it == grams_.end()) return {};
  Gram& gram = it->second;
  if (!is_mean_[expert]) {
    const double share = 1.0 / static_cast<double>(gram.n_rows);
    for (int64_t i = 0; i < gram.sum.rows(); ++i) {
      for (int64_t j = i; j < gram.sum.cols(); ++j) gram.sum(i, j) *= share;
    }
    mirror_upper(gram.sum.view());
    is_mean_[expert] = true;
  }
  return gram.sum.view();
}

std::vector<double> GramTap::mean(int expert) const {
  const auto it = grams_.find(expert);
  if (it == grams_.end()) return {};
  std::vector<double> mean = it->second.x;
  const double share = 1.0 / static_cast<double>(it->second.n_rows);
  for (double& value : mean) value *= share;
  return mean;
}

Matrix<float> GramTap::drift(int expert, double damping) {
  const MatrixView<const double> h = hessian(expert);
  const auto it = grams_.find(expert);
  if (it == grams_.end() || it->second.drift.empty()) return {};
  double trace = 0;
  Matrix<double> factor(h.rows, h.cols), drift = it->second.drift;
  for (int64_t i = 0; i < h.rows; ++i) {
    trace += h(i, i);
    std::copy_n(h.row(i), h.cols, factor.row(i));
  }
  const auto n = static_cast<double>(h.rows);
  for (int64_t i = 0; i < h.rows; ++i) factor(i, i) += damping * trace / n;
  if (!(trace > 0) || !reverse_cholesky(factor.view())) return {};
  const double share = 1.0 / static_cast<double>(it->second.n_rows);
  for (int64_t i = 0; i < drift.rows() * drift.cols(); ++i) drift.data()[i] *= share;
  divide_by_factored(drift.view(), factor.view());
  Matrix<float> rounded(h.rows, h.cols);
  for (int64_t i = 0; i < drift.rows() * drift.cols(); ++i) {
    rounded.data()[i] = static_cast<float>(drift.data()[i]);
  }
  return rounded;
}

int64_t GramTap::n_rows(int expert) const {
  const auto it = grams_.find(expert);
  return it == grams_.end() ? 0 : it->second.n_rows;
}

void add_product(float share, MatrixView<const float> p, Matrix<float>& w) {
  constexpr int64_t kRows = 32;
  parallel_for(w.rows(), kRows, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    Matrix<float> scaled(n, w.cols());
    std::copy_n(w.row(begin), n * w.cols(), scaled.data());
    kernels().scale(share, n * w.cols(), scaled.data());
    kernels().axpy_rows(scaled.data(), w.cols(), n, p.data, p.stride, w.cols(), w.cols(),
                        w.row(begin), w.cols());
  });
}

}  // namespace quern
