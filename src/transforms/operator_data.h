// SPDX-License-Identifier: Apache-2.0
// Dense data of operators, to and from tensors of a model's files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "transforms/operator.h"

namespace quern {

inline OperatorTensor float_tensor(std::string name, Shape shape, const float* values) {
  OperatorTensor tensor{std::move(name), DType::kF32, std::move(shape), {}};
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  const auto n = static_cast<size_t>(*element_count(tensor.shape));
  tensor.bytes.assign(bytes, bytes + n * sizeof(float));
  return tensor;
}

// In single precision if that holds the values, else in double.
inline OperatorTensor real_tensor(std::string name, Shape shape,
                                  const std::vector<double>& values) {
  const std::vector<float> rounded(values.begin(), values.end());
  if (std::equal(values.begin(), values.end(), rounded.begin())) {
    return float_tensor(std::move(name), std::move(shape), rounded.data());
  }
  OperatorTensor tensor{std::move(name), DType::kF64, std::move(shape), {}};
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  tensor.bytes.assign(bytes, bytes + values.size() * sizeof(double));
  return tensor;
}

// The tensor of that name, if its type and shape are these.
inline Result<const TensorInfo*> find_data(const FindTensor& find, std::string_view name,
                                           DType dtype, const Shape& shape) {
  const TensorInfo* tensor = find ? find(name) : nullptr;
  if (tensor == nullptr) return error("basis: the tensor '{}' of an operator is missing", name);
  if (tensor->dtype != dtype || tensor->shape != shape || tensor->block_type != 0) {
    return error("basis: tensor '{}' is {} {}, expected {} {}", tensor->name,
                 dtype_name(tensor->dtype), to_string(tensor->shape), dtype_name(dtype),
                 to_string(shape));
  }
  return tensor;
}

// Its values, which must be finite.
inline Result<std::vector<float>> read_floats(const FindTensor& find, std::string_view name,
                                              const Shape& shape) {
  QUERN_ASSIGN(const TensorInfo* tensor, find_data(find, name, DType::kF32, shape));
  std::vector<float> values(tensor->n_bytes / sizeof(float));
  std::memcpy(values.data(), tensor->bytes, tensor->n_bytes);
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
    return error("basis: tensor '{}' has a value that is not finite", tensor->name);
  }
  return values;
}

// The same of a tensor in single or double precision.
inline Result<std::vector<double>> read_reals(const FindTensor& find, std::string_view name,
                                              const Shape& shape) {
  const TensorInfo* tensor = find ? find(name) : nullptr;
  if (tensor == nullptr || tensor->dtype != DType::kF64) {
    QUERN_ASSIGN(const std::vector<float> values, read_floats(find, name, shape));
    return std::vector<double>(values.begin(), values.end());
  }
  QUERN_TRY(find_data(find, name, DType::kF64, shape));
  std::vector<double> values(tensor->n_bytes / sizeof(double));
  std::memcpy(values.data(), tensor->bytes, tensor->n_bytes);
  // What overflows single precision could not run.
  const auto is_sound = [](double v) { return std::isfinite(static_cast<float>(v)); };
  if (!std::all_of(values.begin(), values.end(), is_sound)) {
    return error("basis: tensor '{}' has a value that is not finite", tensor->name);
  }
  return values;
}

}  // namespace quern
