// SPDX-License-Identifier: Apache-2.0
// Coordinate descent on tr(E H E^T) after feedback (quip_tune_iters of QuIP#): every block is coded
// once more with all others fixed, for
//     w_k - E_k + (E H)_k H_kk^-1,
// where the loss would be least if any point could be had. Nearest in the plain metric need not
// lower tr(E H E^T), so a change is kept only if it does, strip by strip of the codec's rows.
#pragma once

#include <cstdint>
#include <vector>

#include "solvers/feedback.h"

namespace quern {

class Descent {
 public:
  // `lambda` of the feedback keeps H_kk regular.
  Descent(MatrixView<const double> hessian, const Feedback& feedback);
  static size_t scratch_bytes(int64_t n_in, int64_t block);

  // Codes every block of the tile again; whether any changed. `targets` [n, n_in], by place, is
  // what the present codes were chosen for.
  bool sweep(const FeedbackTile& tile, Matrix<float>& targets) const;

 private:
  bool descend(const FeedbackTile& tile, size_t block, int64_t begin,
               MatrixView<const float> gradient, Matrix<float>& targets,
               Matrix<float>& change) const;
  double loss_change(int64_t begin, MatrixView<const float> gradient,
                     MatrixView<const float> change) const;

  Matrix<float> h_;                      // [n_in, n_in] by place
  std::vector<Matrix<float>> inverses_;  // of H_kk + lambda I, by block
};

}  // namespace quern
