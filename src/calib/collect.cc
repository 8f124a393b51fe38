// SPDX-License-Identifier: Apache-2.0
#include "calib/collect.h"

#include <algorithm>

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

bool GramTap::input(Role role, int expert, MatrixView<const float> x) {
  if (role != role_) return true;
  if (expert >= first_expert_ && expert <= last_expert_) {
    Gram& gram = grams_[expert];
    if (gram.sum.empty()) gram.sum = Matrix<double>(x.cols, x.cols);
    accumulate_gram(x, gram.sum.view());
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
