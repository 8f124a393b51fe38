// SPDX-License-Identifier: Apache-2.0
// Kullback-Leibler divergence between the distributions that two rows of logits mean.
#pragma once

#include <cstdint>
#include <span>

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

}  // namespace quern
