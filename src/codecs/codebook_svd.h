// SPDX-License-Identifier: Apache-2.0
// Tables of one matrix as products of few numbers each and one basis.
#pragma once

#include "tensor/matrix.h"

namespace quern {

struct CodebookFactors {
  Matrix<double> coefficients;  // [n, rank]
  Matrix<double> basis;         // [rank, k], orthonormal rows
};
// The best approximation of tables [n, k] by rank at most `rank` <= k in squared error: basis are
// the leading eigenvectors of tables^T tables, found by Jacobi's method.
CodebookFactors codebook_factors(const Matrix<double>& tables, int64_t rank);

}  // namespace quern
