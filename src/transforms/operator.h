// SPDX-License-Identifier: Apache-2.0
// Operators: the linear maps that changes of basis are made of.
//
// Convention: activations are rows and an operator maps x -> x M^T. A weight W [n_out, n_in] that
// reads a changed input becomes W M^-1, which is apply_inverse_transpose on its rows; one that
// writes into a changed basis becomes M W, which is apply on its columns. For an orthogonal
// operator both are `apply`, and none needs to be symmetric.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "formats/checkpoint.h"
#include "formats/json.h"
#include "tensor/matrix.h"

namespace quern {

// Dense data of an operator, which a model's files hold as a tensor and never as JSON.
struct OperatorTensor {
  std::string name;  // within the operator: "scale"
  DType dtype = DType::kF32;
  Shape shape;
  std::vector<std::byte> bytes;
};

// The stored tensor of that name of the operator that is being read; null if there is none.
using FindTensor = std::function<const TensorInfo*(std::string_view name)>;

// What may fold into the writer of an operator's input (model/fuse decides): scaling each value by
// itself, or reordering them, passes through an elementwise product. Signs are made by make_signs
// alone.
enum class OperatorKind : uint8_t { kDiagonal, kPermutation, kSigns, kOther };

// An invertible map of `size()` values, for consecutive stretches of that many. Immutable, safe to
// use from many threads. Numbers are representable in single precision, so that what a file gives
// back is what was folded into the weights.
class Operator {
 public:
  virtual ~Operator() = default;
  virtual OperatorKind kind() const { return OperatorKind::kOther; }
  virtual bool is_orthogonal() const = 0;
  virtual int64_t size() const = 0;
  // In place on `count` values, a multiple of size(): x -> x M^T.
  virtual void apply(float* x, int64_t count) const = 0;
  virtual void apply(double* x, int64_t count) const = 0;
  // The same from x to y, which may not overlap x, with the same bits.
  virtual void apply_to(const float* x, int64_t count, float* y) const {
    std::copy_n(x, count, y);
    apply(y, count);
  }
  // x -> x M^-T
  virtual void apply_inverse(float* x, int64_t count) const = 0;
  virtual void apply_inverse(double* x, int64_t count) const = 0;
  // x -> x M^-1, what rows of weights get. Orthogonal operators need not say more than apply.
  virtual void apply_inverse_transpose(float* x, int64_t count) const { apply(x, count); }
  virtual void apply_inverse_transpose(double* x, int64_t count) const { apply(x, count); }
  // Of one application to size() values: operations, and bytes of the operator's own data.
  virtual int64_t flops() const = 0;
  virtual int64_t bytes() const = 0;
  virtual Json to_json() const = 0;  // {"op": name, ...}
  virtual std::vector<OperatorTensor> tensors() const { return {}; }
  // An operator that does `before` and then this one in fewer passes, with the same bits, for
  // running alone; null where there is none.
  virtual std::shared_ptr<const Operator> joined(
      const std::shared_ptr<const Operator>& /*before*/) const {
    return nullptr;
  }
};
using OperatorPtr = std::shared_ptr<const Operator>;

// One row of operators.inc.
struct OperatorInfo {
  std::string_view name;
  // From a file, which may hold anything: checks sizes, finiteness and that an inverse exists.
  Result<OperatorPtr> (*read)(const Json& json, const FindTensor& find);
};
std::span<const OperatorInfo> operators();
Result<OperatorPtr> read_operator(const Json& json, const FindTensor& find);

constexpr int64_t kMaxOperatorSize = int64_t{1} << 24;

// x_j <- +-x_j, drawn from a seed.
OperatorPtr make_signs(int64_t size, uint64_t seed, uint64_t stream);
// n = K * 2^p as kernels/hadamard.h constructs it; fails when no construction is known.
Result<OperatorPtr> make_hadamard(int64_t size);
// Hadamard over the head axis of [n_heads, d_head].
Result<OperatorPtr> make_head_axis(int64_t n_heads, int64_t d_head);
// x_j <- scale_j x_j; fails on an entry without an inverse.
Result<OperatorPtr> make_diagonal(std::vector<float> scale);
// x_j <- x_order[j]; fails on what is no permutation.
Result<OperatorPtr> make_permutation(std::vector<int32_t> order);
// x <- x M^T for M [n, n], for every stretch of n values; fails if M is singular.
Result<OperatorPtr> make_dense(MatrixView<const double> matrix);
// The same with a matrix for each block of a stretch, all [b, b].
Result<OperatorPtr> make_block_diagonal(std::span<const Matrix<double>> blocks);
// Haar: uniform over all orthogonal matrices.
Result<OperatorPtr> make_random_orthogonal(int64_t size, uint64_t seed, uint64_t stream);
constexpr int64_t kMaxDctSize = int64_t{1} << 18;
OperatorPtr make_dct(int64_t size);

}  // namespace quern
