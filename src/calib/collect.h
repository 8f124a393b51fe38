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
  Matrix<double> sum;     // [n_in, n_in]
  std::vector<double> x;  // [n_in], sum of x, where means are wanted
  Matrix<double> drift;   // [n_in, n_in] of (x_source - x) x^T, where both are shown
  int64_t n_rows = 0;
};

// Keeps what one group of dense weights reads.
class InputTap final : public LayerTap {
 public:
  explicit InputTap(Role role) : role_(role) {}
  bool input(Role role, int expert, MatrixView<const float> x) override;
  const Matrix<float>& rows() const { return rows_; }

 private:
  Role role_;
  Matrix<float> rows_;
};

// The least and the largest value of each column that one group of weights reads, and zero.
class RangeTap final : public LayerTap {
 public:
  explicit RangeTap(Role role) : role_(role) {}
  bool input(Role role, int expert, MatrixView<const float> x) override;

  // `act` with its ranges for the weights of one expert (-1: the one dense MLP). An expert that no
  // row reached takes those of all.
  std::shared_ptr<const ActRounding> rounding(std::shared_ptr<const ActQuantizer> act,
                                              int expert) const;

 private:
  struct Range {
    std::vector<float> low, high;
  };
  Role role_;
  std::map<int, Range> ranges_;  // by expert; kAll: of all together
};

// Gathers the Gram matrices of one role (kQ stands for q, k, v; kGate for gate and up) for the
// experts in [first_expert, last_expert], or for the one dense MLP (-1, -1), then ends the layer.
class GramTap final : public LayerTap {
 public:
  GramTap(Role role, int first_expert, int last_expert)
      : role_(role), first_expert_(first_expert), last_expert_(last_expert) {}

  bool input(Role role, int expert, MatrixView<const float> x) override;
  // How the weights of an expert round what they read: statistics are of the rounded rows.
  void round(int expert, std::shared_ptr<const ActRounding> rounding) {
    roundings_[expert] = std::move(rounding);
  }
  // What the original model's weights read for the rows that come next; for the dense MLP only.
  void expect(const Matrix<float>* source) { source_ = source; }

  // E[(x_source - x) x^T] (H + damping mean(diag H) I)^-1, [n_in, n_in]: what W must be multiplied
  // by and added to itself so that it does on x what W does on x_source, in least squares (GPTAQ,
  // arXiv 2504.02692). Empty if nothing was expected or H has no factor.
  Matrix<float> drift(int expert, double damping);

  // Means are summed up too, for the rows that come next.
  void take_means() { takes_means_ = true; }

  // H = sum / n_rows of an expert; empty if no row reached it.
  MatrixView<const double> hessian(int expert);
  // Of x [n_in]; empty if no row reached the expert, or means were not taken.
  std::vector<double> mean(int expert) const;
  int64_t n_rows(int expert) const;

 private:
  Role role_;
  int first_expert_, last_expert_;
  std::map<int, Gram> grams_;
  std::map<int, bool> is_mean_;
  std::map<int, std::shared_ptr<const ActRounding>> roundings_;
  const Matrix<float>* source_ = nullptr;
  bool takes_means_ = false;
};

// W += share * W P, in float: the target under drift P.
void add_product(float share, MatrixView<const float> p, Matrix<float>& w);

}  // namespace quern
