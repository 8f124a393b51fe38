// SPDX-License-Identifier: Apache-2.0
// Factors of proxy Hessians, in double. Tiles have fixed sizes and fixed orders of summation and
// are shared out among threads, so results depend neither on the number of threads nor on the
// instruction set.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {

// H = M D M^T with M unit upper triangular and D diagonal: what feedback solvers want when columns
// are coded in ascending order. Reads the upper triangle of H [n, n] and writes M above the
// diagonal, D on it and zeros below. Fails, leaving H destroyed, where pivot i is not above
// 4 n 2^-52 H_ii (the rounding errors of a singular matrix), naming i.
Status reverse_cholesky(MatrixView<double> h, const KernelTable& table = kernels());

// Y <- Y (M D M^T)^-1, Y [n_rows, n]; `factor` holds M above the diagonal and D on it.
void divide_by_factored(MatrixView<double> y, MatrixView<const double> factor);

// H += X^T X in the upper triangle (diagonal included; what lies below is not touched), X
// [n_tokens, n]. Every 512 tokens are summed in float in the 16-lane order of kernels.h (a relative
// error of 40 * 2^-24 of sum |x_i x_j| at most), these sums in double in ascending order.
void accumulate_gram(MatrixView<const float> x, MatrixView<double> h);

// C += A^T B, A [n_tokens, n_a], B [n_tokens, n_b]; rounded as accumulate_gram rounds.
void accumulate_product(MatrixView<const float> a, MatrixView<const float> b, MatrixView<double> c);

// Copies the upper triangle to the lower.
void mirror_upper(MatrixView<double> h);

}  // namespace quern
