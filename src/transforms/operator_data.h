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

}  // namespace quern
