// SPDX-License-Identifier: Apache-2.0
// Statistics of what linear layers read, gathered while a decoder layer runs.
#pragma once

#include <map>
#include <vector>

#include "model/forward.h"
#include "tensor/matrix.h"

namespace quern {

// Sum of x x^T over the rows that reach one group of weights, in double.
struct Gram {
  Matrix<double> sum;  // [n_in, n_in]
  int64_t n_rows = 0;
};

// Gathers the Gram matrices of one role (kQ stands for q, k, v; kGate for gate and up) for the
// experts in [first_expert, last_expert], or for the one dense MLP (-1, -1), then ends the layer.
class GramTap final : public LayerTap {
 public:
  GramTap(Role role, int first_expert, int last_expert)
      : role_(role), first_expert_(first_expert), last_expert_(last_expert) {}

  bool input(Role role, int expert, MatrixView<const float> x) override;

  // H = sum / n_rows of an expert; empty if no row reached it.
  MatrixView<const double> hessian(int expert);
  int64_t n_rows(int expert) const;

 private:
  Role role_;
  int first_expert_, last_expert_;
  std::map<int, Gram> grams_;
  std::map<int, bool> is_mean_;
};

}  // namespace quern
