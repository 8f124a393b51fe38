// SPDX-License-Identifier: Apache-2.0
// Orthogonal Hadamard operators of any size n = K * 2^p for which a Hadamard matrix of order K can
// be constructed:
//
//   M = (1 / sqrt n) (Had_K (x) H_{2^p})     Had_K outer, Sylvester inner; part of the file format
//
// A vector is a K x 2^p row-major matrix: fast transform of every row, then Had_K from the left.
// M need not be symmetric. Apply the same routine to activations and to the rows of the weight that
// meets them: (x M^T)(w M^T)^T = x w^T.
//
// K is the smallest constructible m * 2^j, where n = m * 2^s, m odd, j <= s. Constructions:
//   sylvester   K = 1
//   paley1      K = q + 1,   q prime, q = 3 mod 4
//   paley2      K = 2(q + 1), q prime, q = 1 mod 4
//   williamson  K = 4 m from tables: 52, 92, 100, 116, 156, 172
//   double-X    H_2 (x) Had_{K / 2}, Had_{K / 2} by X
// All 4 m up to 184 are covered; the next gaps are 188 and 236.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {

class HadamardPlan {
 public:
  static Result<HadamardPlan> make(int64_t n);
  // What a file names: fails where `construction` does not give order k, or n / k is no power of 2.
  static Result<HadamardPlan> make_as(int64_t n, int64_t k, std::string_view construction);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  const std::string& construction() const { return construction_; }
  const std::vector<int8_t>& signs() const { return signs_; }  // [k, k], Had_K as +1 and -1
  Matrix<double> to_dense() const;                             // M, [n, n]

  // X <- X M^T and X <- X M for rows of n values; rows are shared out among threads. Floats have
  // the same bits at every ISA (the one of `table` runs).
  void apply_rows(MatrixView<float> x, const KernelTable& table = kernels()) const;
  // Y = X M^T; Y may be X, and else may not overlap it. So where else there is a Y.
  void apply_rows(MatrixView<const float> x, MatrixView<float> y,
                  const KernelTable& table = kernels()) const;
  // Y = X diag(signs) M^T, signs [n] of +1 and -1.
  void apply_signed_rows(MatrixView<const float> x, const float* signs, MatrixView<float> y,
                         const KernelTable& table = kernels()) const;
  void apply_rows(MatrixView<double> x) const;
  void apply_rows_transposed(MatrixView<float> x, const KernelTable& table = kernels()) const;
  void apply_rows_transposed(MatrixView<double> x) const;

  // W <- M W and W <- M^T W, W of n rows.
  void apply_columns(MatrixView<double> w) const;
  void apply_columns_transposed(MatrixView<double> w) const;

  // Every row is [n, d_head] and is multiplied over its first axis: X <- X (M (x) I)^T, X (M (x)
  // I).
  void apply_heads(MatrixView<float> x, int64_t d_head, const KernelTable& table = kernels()) const;
  void apply_heads(MatrixView<const float> x, int64_t d_head, MatrixView<float> y,
                   const KernelTable& table = kernels()) const;
  void apply_heads(MatrixView<double> x, int64_t d_head) const;
  void apply_heads_transposed(MatrixView<float> x, int64_t d_head,
                              const KernelTable& table = kernels()) const;
  void apply_heads_transposed(MatrixView<double> x, int64_t d_head) const;

 private:
  HadamardPlan() = default;
  int64_t n_ = 1, k_ = 1;
  int log2_inner_ = 0;  // p
  std::string construction_;
  std::vector<int8_t> signs_;

  // Had_K as the kernel takes it, and as rows of doubles; empty where k is 1.
  struct Factor {
    std::vector<float> sign;
    std::vector<uint8_t> pattern;
    std::vector<double> rows;  // [k, k]
  };
  Factor factor_, transposed_;
  static Factor factor_of(const std::vector<int8_t>& signs, int64_t k, bool is_transposed);

  friend struct HadamardAxis;
  struct Rows;
  void rows_of_floats(MatrixView<const float> x, MatrixView<float> y, const Rows& how) const;
};

// The operator on the input of o_proj: Had_heads (x) H_head, whatever n_heads * d_head would factor
// into by itself. Its parts can be applied apart: `head` fused, `heads` online.
struct HeadsHadamard {
  HadamardPlan heads, head;

  static Result<HeadsHadamard> make(int64_t n_heads, int64_t d_head);
  void apply_rows(MatrixView<float> x) const;
  void apply_rows(MatrixView<double> x) const;
  void apply_rows_transposed(MatrixView<float> x) const;
  void apply_rows_transposed(MatrixView<double> x) const;
};

// Where a plan is refused: the largest power of two that divides n, for a transform of groups.
int64_t grouped_hadamard_size(int64_t n);

}  // namespace quern
