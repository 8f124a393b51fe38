// SPDX-License-Identifier: Apache-2.0
// Dense data of operators, to and from tensors of a model's files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_types.h"
#include "transforms/operator.h"

namespace quern {

inline OperatorTensor float_tensor(std::string name, Shape shape, const float* values) {
  OperatorTensor tensor{std::move(name), DType::kF32, std::move(shape), {}};
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  const auto n = static_cast<size_t>(*element_count(tensor.shape));
  tensor.bytes.assign(bytes, bytes + n * sizeof(float));
  return tensor;
}

// In the first of half, single and double precision that holds the values exactly.
inline OperatorTensor real_tensor(std::string name, Shape shape,
                                  const std::vector<double>& values) {
  const std::vector<float> rounded(values.begin(), values.end());
  const auto is_half = [](float v) { return f16_to_float(float_to_f16(v)) == v; };
  if (std::equal(values.begin(), values.end(), rounded.begin())) {
    if (std::all_of(rounded.begin(), rounded.end(), is_half)) {
      OperatorTensor tensor{std::move(name), DType::kF16, std::move(shape), {}};
      tensor.bytes.resize(2 * rounded.size());
      for (size_t i = 0; i < rounded.size(); ++i) {
        put_half(tensor.bytes.data(), static_cast<int64_t>(i), rounded[i]);
      }
      return tensor;
    }
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

// The same of a tensor in half, single or double precision.
inline Result<std::vector<double>> read_reals(const FindTensor& find, std::string_view name,
                                              const Shape& shape) {
  const TensorInfo* tensor = find ? find(name) : nullptr;
  const DType dtype = tensor == nullptr ? DType::kF32 : tensor->dtype;
  std::vector<double> values;
  if (dtype == DType::kF16) {
    QUERN_TRY(find_data(find, name, DType::kF16, shape));
    values.resize(tensor->n_bytes / 2);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<double>(half_at(tensor->bytes, static_cast<int64_t>(i)));
    }
  } else if (dtype == DType::kF64) {
    QUERN_TRY(find_data(find, name, DType::kF64, shape));
    values.resize(tensor->n_bytes / sizeof(double));
    std::memcpy(values.data(), tensor->bytes, tensor->n_bytes);
  } else {
    QUERN_ASSIGN(const std::vector<float> floats, read_floats(find, name, shape));
    return std::vector<double>(floats.begin(), floats.end());
  }
  // What overflows single precision could not run.
  const auto is_sound = [](double v) { return std::isfinite(static_cast<float>(v)); };
  if (!std::all_of(values.begin(), values.end(), is_sound)) {
    return error("basis: tensor '{}' has a value that is not finite", tensor->name);
  }
  return values;
}

}  // namespace quern
