// SPDX-License-Identifier: Apache-2.0
#include "eval/divergence.h"

#include <cmath>

#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {

double divergence(const float* p, double p_norm, const float* q, double q_norm, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double log_p = p[j] - p_norm;
    sum += std::exp(log_p) * (log_p - (q[j] - q_norm));
  }
  return sum;
}

void divergences(const Matrix<float>& p, const Matrix<float>& q, std::span<double> kl) {
  const int64_t n = p.cols();
  parallel_for(p.rows(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double p_norm = kernels().log_sum_exp(p.row(i), n);
      const double q_norm = kernels().log_sum_exp(q.row(i), n);
      kl[static_cast<size_t>(i)] = divergence(p.row(i), p_norm, q.row(i), q_norm, n);
    }
  });
}

}  // namespace quern
