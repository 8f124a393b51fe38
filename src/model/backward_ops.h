// SPDX-License-Identifier: Apache-2.0
// Adjoints of the operations of a decoder layer: from dL/dy of what an operation made, for a scalar
// L, to dL/dx of what it read. All sums have one order, so results do not depend on threads.
#pragma once

#include "model/forward.h"
#include "tensor/matrix.h"

namespace quern {

// y += a v; a [n, k], v [k, m], y [n, m].
void add_matmul(MatrixView<const float> a, MatrixView<const float> v, MatrixView<float> y);

// y = x W^T + b: dx += dy W.
void linear_backward(const LinearWeight& weight, MatrixView<const float> dy, MatrixView<float> dx);

// y = norm(x), row by row: d holds dL/dy before and dL/dx after.
void norm_backward(const NormDesc& norm, const NormWeight& weight, MatrixView<const float> x,
                   MatrixView<float> d);

// The derivative of an activation; of relu at 0: 0.
float activation_slope(Activation activation, float x);

// Heads of one sequence from position 0 as attention meets them, behind their norms and RoPE.
struct Heads {
  Matrix<float> q;  // [n, n_heads * d_head]
  Matrix<float> k;  // [n, n_kv_heads * d_head]
  Matrix<float> v;  // [n, n_kv_heads * d_head]
};

// The mixed values, [n, n_heads * d_head], in plain float; and dL/d(heads) from dL/d(mixed).
Matrix<float> attend_whole(const AttentionDesc& attention, const Heads& heads);
Heads attend_backward(const AttentionDesc& attention, const Heads& heads,
                      MatrixView<const float> d_mixed);

}  // namespace quern
