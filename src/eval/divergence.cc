// SPDX-License-Identifier: Apache-2.0
#include "eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

std::vector<std::vector<double>> divergences_from(const LogitsOf& base,
                                                  std::span<const LogitsOf> others, int64_t n,
                                                  int64_t n_vocab,
                                                  const std::function<bool()>& proceed) {
  std::vector<std::vector<double>> kl(others.size(), std::vector<double>(static_cast<size_t>(n)));
  const int64_t chunk = logit_rows(n_vocab);
  for (int64_t row = 0; row < n; row += chunk) {
    const int64_t count = std::min(chunk, n - row);
    Matrix<float> p(count, n_vocab), q(count, n_vocab);
    base(row, p.view());
    for (size_t i = 0; i < others.size(); ++i) {
      if (!proceed()) return {};
      others[i](row, q.view());
      divergences(p, q,
                  std::span(kl[i]).subspan(static_cast<size_t>(row), static_cast<size_t>(count)));
    }
  }
  return kl;
}

double mean_divergence(std::span<const double> kl) {
  const double mean = std::accumulate(kl.begin(), kl.end(), 0.0) / static_cast<double>(kl.size());
  return mean < 0 ? 0 : mean;
}

}  // namespace quern
