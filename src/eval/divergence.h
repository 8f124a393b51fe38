// SPDX-License-Identifier: Apache-2.0
// Kullback-Leibler divergence between the distributions that two rows of logits mean.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/matrix.h"

namespace quern {

// KL(p || q) in nats, in double, given the log sums of both.
double divergence(const float* p, double p_norm, const float* q, double q_norm, int64_t n);

// Row by row.
void divergences(const Matrix<float>& p, const Matrix<float>& q, std::span<double> kl);

}  // namespace quern
