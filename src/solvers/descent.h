// SPDX-License-Identifier: Apache-2.0
// Coordinate descent on tr(E H E^T) (quip_tune_iters of QuIP#, the beam search of AQLM): every
// block is coded once more with all others fixed, for
//     T_k = w_k - E_k + (E H)_k (H_kk + lambda I)^-1,
// where the loss would be least if any point could be had, in the metric H_kk + lambda I where the
// codec can. What lambda adds to the loss is lambda |change|^2. A change is kept only if it lowers
// tr(E H E^T) itself, strip by strip of the codec's rows.
#pragma once

#include <cstdint>
#include <vector>

#include "solvers/feedback.h"

namespace quern {

class Descent {
 public:
  // Of `feedback` the order, the blocks and lambda, which keeps H_kk regular.
  Descent(MatrixView<const double> hessian, const Feedback& feedback);
  static size_t scratch_bytes(int64_t n_in, int64_t block);

  // At most `sweeps` over all blocks of a tile that is coded, fewer if one changes nothing. `trial`
  // has the side info that the matrix shares; what it holds of the tile's rows is overwritten.
  void run(const FeedbackTile& tile, int64_t sweeps, CodedMatrix& trial) const;

 private:
  struct Trial;
  bool sweep(const FeedbackTile& tile, const Trial& trial) const;
  bool descend(const FeedbackTile& tile, const Trial& trial, size_t block, int64_t begin,
               MatrixView<const float> gradient, Matrix<float>& change) const;
  double loss_change(int64_t begin, MatrixView<const float> gradient,
                     MatrixView<const float> change) const;

  Matrix<float> h_;                                // [n_in, n_in] by place
  std::vector<Matrix<float>> metrics_, inverses_;  // H_kk + lambda I, by block
};

// All blocks of a coded matrix in the order of their columns, on all threads; lambda is `damping`
// times the mean of diag H. Codes that do not lower tr(E H E^T) in a strip stay as they are.
class MatrixDescent {
 public:
  MatrixDescent(MatrixView<const double> hessian, const Codec& codec, double damping);
  void run(MatrixView<const float> w, int64_t sweeps, CodedMatrix& out) const;

 private:
  const Codec& codec_;
  Feedback blocks_;
  Descent descent_;
};

}  // namespace quern
