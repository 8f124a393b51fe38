// SPDX-License-Identifier: Apache-2.0
#include "linalg/decompose.h"

#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/parallel.h"

namespace quern {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>> map(MatrixView<const double> a) {
  return {a.data, a.rows, a.cols, Eigen::OuterStride<>(a.stride)};
}

Matrix<double> copy(const Eigen::MatrixXd& from) {
  Matrix<double> to(from.rows(), from.cols());
  Eigen::Map<RowMajor>(to.data(), to.rows(), to.cols()) = from;
  return to;
}

bool is_finite(MatrixView<const double> a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    if (!std::all_of(a.row(i), a.row(i) + a.cols, [](double v) { return std::isfinite(v); })) {
      return false;
    }
  }
  return true;
}

}  // namespace

Matrix<double> product(MatrixView<const double> a, MatrixView<const double> b) {
  QUERN_CHECK(a.cols == b.rows);
  constexpr int64_t kRows = 64;
  Matrix<double> c(a.rows, b.cols);
  parallel_for(a.rows, kRows, [&](int64_t begin, int64_t end) {
    const MatrixView<const double> part{a.row(begin), end - begin, a.cols, a.stride};
    Eigen::Map<RowMajor>(c.row(begin), end - begin, b.cols).noalias() = map(part) * map(b);
  });
  return c;
}

Result<Matrix<double>> inverse(MatrixView<const double> a) {
  QUERN_CHECK(a.rows == a.cols);
  if (!is_finite(a)) return error("inverse: the matrix is not finite");
  const Eigen::MatrixXd dense = map(a);
  const Eigen::MatrixXd result = dense.partialPivLu().inverse();
  const double worst =
      (dense * result - Eigen::MatrixXd::Identity(a.rows, a.cols)).cwiseAbs().maxCoeff();
  if (!(worst < 1e-6)) return error("inverse: a matrix of {} rows is singular", a.rows);
  return copy(result);
}

Matrix<double> random_orthogonal(int64_t n, Random& random) {
  Eigen::MatrixXd gaussian(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) gaussian(i, j) = random.gaussian();
  }
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(gaussian);
  Eigen::MatrixXd q = qr.householderQ();
  for (int64_t j = 0; j < n; ++j) {
    if (qr.matrixQR()(j, j) < 0) q.col(j) = -q.col(j);
  }
  return copy(q);
}

Result<SymmetricEigen> eigen_symmetric(MatrixView<const double> a) {
  QUERN_CHECK(a.rows == a.cols);
  if (!is_finite(a)) return error("eigenvalues: the matrix is not finite");
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(map(a));
  if (solver.info() != Eigen::Success) return error("eigenvalues: no convergence");
  // Eigen sorts by rising value and leaves signs open.
  Eigen::MatrixXd vectors = solver.eigenvectors().rowwise().reverse();
  for (int64_t j = 0; j < vectors.cols(); ++j) {
    Eigen::Index largest = 0;
    vectors.col(j).cwiseAbs().maxCoeff(&largest);
    if (vectors(largest, j) < 0) vectors.col(j) = -vectors.col(j);
  }
  SymmetricEigen result;
  result.values.assign(solver.eigenvalues().data(), solver.eigenvalues().data() + a.rows);
  std::reverse(result.values.begin(), result.values.end());
  result.vectors = copy(vectors);
  return result;
}

}  // namespace quern
