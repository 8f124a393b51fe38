// SPDX-License-Identifier: Apache-2.0
// Decompositions of dense matrices in double, by Eigen: one thread, compiled for the least
// processor, so that the bits are the same on all of them.
#pragma once

#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "tensor/matrix.h"

namespace quern {

// A B, a block of rows of A per piece of work.
Matrix<double> product(MatrixView<const double> a, MatrixView<const double> b);

// inverse [n, n] of a [n, n]. Fails where A A^-1 is further than 1e-6 from I in an entry.
Result<Matrix<double>> inverse(MatrixView<const double> a);

// A rotation or reflection of n dimensions, uniform over all (Haar): Q of a Gaussian matrix, its
// columns turned so that R has a positive diagonal (Mezzadri, arXiv math-ph/0609050).
Matrix<double> random_orthogonal(int64_t n, Random& random);

struct SymmetricEigen {
  std::vector<double> values;  // [n], the largest first
  Matrix<double> vectors;  // [n, n], column i belongs to values[i]; the largest entry is positive
};
// Of a symmetric matrix (its lower triangle is read). Fails if it is not finite.
Result<SymmetricEigen> eigen_symmetric(MatrixView<const double> a);

}  // namespace quern
