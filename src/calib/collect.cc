// SPDX-License-Identifier: Apache-2.0
#include "calib/collect.h"

#include "linalg/cholesky.h"

namespace quern {

bool GramTap::input(Role role, int expert, MatrixView<const float> x) {
  if (role != role_) return true;
  if (expert >= first_expert_ && expert <= last_expert_) {
    Gram& gram = grams_[expert];
    if (gram.sum.empty()) gram.sum = Matrix<double>(x.cols, x.cols);
    accumulate_gram(x, gram.sum.view());
    gram.n_rows += x.rows;
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

int64_t GramTap::n_rows(int expert) const {
  const auto it = grams_.find(expert);
  return it == grams_.end() ? 0 : it->second.n_rows;
}

}  // namespace quern
