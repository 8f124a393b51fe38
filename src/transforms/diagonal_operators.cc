// SPDX-License-Identifier: Apache-2.0
// Diagonals and permutations: the operators that may fold into what writes their input.
#include <cmath>

#include "kernels/kernels.h"
#include "transforms/operator.h"
#include "transforms/operator_data.h"

namespace quern {
namespace {

bool has_inverse(float value) { return std::isnormal(value) && std::isnormal(1.0f / value); }

// x_j <- s_j x_j
class Diagonal final : public Operator {
 public:
  explicit Diagonal(std::vector<float> scale) : scale_(std::move(scale)) {}
  OperatorKind kind() const override { return OperatorKind::kDiagonal; }
  bool is_orthogonal() const override {
    return std::all_of(scale_.begin(), scale_.end(), [](float s) { return std::abs(s) == 1; });
  }
  int64_t size() const override { return static_cast<int64_t>(scale_.size()); }
  void apply(float* x, int64_t count) const override { apply_to(x, count, x); }
  void apply(double* x, int64_t count) const override {
    for (int64_t start = 0; start < count; start += size()) {
      for (int64_t j = 0; j < size(); ++j) x[start + j] *= scale_[static_cast<size_t>(j)];
    }
  }
  void apply_to(const float* x, int64_t count, float* y) const override {
    for (int64_t start = 0; start < count; start += size()) {
      kernels().multiply(x + start, scale_.data(), size(), y + start);
    }
  }
  void apply_inverse(float* x, int64_t count) const override { divide(x, count); }
  void apply_inverse(double* x, int64_t count) const override { divide(x, count); }
  void apply_inverse_transpose(float* x, int64_t count) const override { divide(x, count); }
  void apply_inverse_transpose(double* x, int64_t count) const override { divide(x, count); }
  int64_t flops() const override { return size(); }
  int64_t bytes() const override { return size() * int64_t{sizeof(float)}; }
  Json to_json() const override { return {{"op", "diagonal"}, {"size", size()}}; }
  std::vector<OperatorTensor> tensors() const override {
    return {float_tensor("scale", {size()}, scale_.data())};
  }

 private:
  template <class T>
  void divide(T* x, int64_t count) const {
    for (int64_t start = 0; start < count; start += size()) {
      for (int64_t j = 0; j < size(); ++j)
        x[start + j] /= static_cast<T>(scale_[static_cast<size_t>(j)]);
    }
  }
  std::vector<float> scale_;
};

// x_j <- x_order[j]
class Permutation final : public Operator {
 public:
  explicit Permutation(std::vector<int32_t> order) : order_(std::move(order)) {}
  OperatorKind kind() const override { return OperatorKind::kPermutation; }
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return static_cast<int64_t>(order_.size()); }
  void apply(float* x, int64_t count) const override { gather(x, count); }
  void apply(double* x, int64_t count) const override { gather(x, count); }
  void apply_to(const float* x, int64_t count, float* y) const override {
    for (const float* end = x + count; x != end; x += size(), y += size()) {
      for (size_t j = 0; j < order_.size(); ++j) y[j] = x[order_[j]];
    }
  }
  void apply_inverse(float* x, int64_t count) const override { scatter(x, count); }
  void apply_inverse(double* x, int64_t count) const override { scatter(x, count); }
  int64_t flops() const override { return 0; }
  int64_t bytes() const override { return size() * int64_t{sizeof(int32_t)}; }
  Json to_json() const override { return {{"op", "permutation"}, {"size", size()}}; }
  std::vector<OperatorTensor> tensors() const override {
    OperatorTensor tensor{"order", DType::kI32, {size()}, {}};
    const auto* bytes = reinterpret_cast<const std::byte*>(order_.data());
    tensor.bytes.assign(bytes, bytes + order_.size() * sizeof(int32_t));
    return {std::move(tensor)};
  }

 private:
  template <class T>
  void gather(T* x, int64_t count) const {
    std::vector<T> from(order_.size());
    for (T* end = x + count; x != end; x += size()) {
      std::copy_n(x, size(), from.data());
      for (size_t j = 0; j < order_.size(); ++j) x[j] = from[static_cast<size_t>(order_[j])];
    }
  }
  template <class T>
  void scatter(T* x, int64_t count) const {
    std::vector<T> from(order_.size());
    for (T* end = x + count; x != end; x += size()) {
      std::copy_n(x, size(), from.data());
      for (size_t j = 0; j < order_.size(); ++j) x[order_[j]] = from[j];
    }
  }
  std::vector<int32_t> order_;
};

Result<OperatorPtr> read_diagonal(const Json& json, const FindTensor& find) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(std::vector<float> scale, read_floats(find, "scale", {size}));
  return make_diagonal(std::move(scale));
}

Result<OperatorPtr> read_permutation(const Json& json, const FindTensor& find) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(const TensorInfo* tensor, find_data(find, "order", DType::kI32, {size}));
  std::vector<int32_t> order(static_cast<size_t>(size));
  std::memcpy(order.data(), tensor->bytes, tensor->n_bytes);
  return make_permutation(std::move(order));
}

}  // namespace

Result<OperatorPtr> make_diagonal(std::vector<float> scale) {
  for (size_t j = 0; j < scale.size(); ++j) {
    if (!has_inverse(scale[j])) {
      return error("diagonal: entry {} is {}, which has no inverse", j, scale[j]);
    }
  }
  return std::make_shared<Diagonal>(std::move(scale));
}

Result<OperatorPtr> make_permutation(std::vector<int32_t> order) {
  std::vector<bool> is_taken(order.size(), false);
  for (const int32_t from : order) {
    if (from < 0 || from >= static_cast<int64_t>(order.size()) ||
        is_taken[static_cast<size_t>(from)]) {
      return error("permutation: {} is repeated or not below {}", from, order.size());
    }
    is_taken[static_cast<size_t>(from)] = true;
  }
  return std::make_shared<Permutation>(std::move(order));
}

extern const OperatorInfo diagonal_operator_info, permutation_operator_info;
const OperatorInfo diagonal_operator_info = {"diagonal", read_diagonal};
const OperatorInfo permutation_operator_info = {"permutation", read_permutation};

}  // namespace quern
