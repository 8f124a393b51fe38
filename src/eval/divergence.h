// SPDX-License-Identifier: Apache-2.0
// Kullback-Leibler divergence between the distributions that two rows of logits mean.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tensor/matrix.h"

namespace quern {

// KL(p || q) in nats, in double, given the log sums of both.
double divergence(const float* p, double p_norm, const float* q, double q_norm, int64_t n);

// Rows of logits to hold at once.
constexpr int64_t logit_rows(int64_t n_vocab) {
  constexpr int64_t kLogits = 4 << 20;
  return n_vocab < kLogits ? kLogits / n_vocab : 1;
}

// Row by row.
void divergences(const Matrix<float>& p, const Matrix<float>& q, std::span<double> kl);

// Writes the logits of positions [row, row + logits.rows).
using LogitsOf = std::function<void(int64_t row, MatrixView<float> logits)>;
// KL(base || other) at each of n positions for each of the others, a few positions at a time.
// `proceed` is asked before each of these; empty if it said no.
std::vector<std::vector<double>> divergences_from(const LogitsOf& base,
                                                  std::span<const LogitsOf> others, int64_t n,
                                                  int64_t n_vocab,
                                                  const std::function<bool()>& proceed);
// Their mean, 0 where rounding would leave less; no number where one of them is none.
double mean_divergence(std::span<const double> kl);

}  // namespace quern
