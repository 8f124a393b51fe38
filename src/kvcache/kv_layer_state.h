// SPDX-License-Identifier: Apache-2.0
// The state of one layer's cache as named tensors: what kvcache/kv_file.h writes and reads.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/shape.h"

namespace quern {

struct TensorInfo;
using KvFindTensor = std::function<const TensorInfo*(std::string_view)>;  // null: absent

struct KvStateTensor {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  std::vector<std::byte> bytes;

  template <class T>
  static KvStateTensor of(std::string name, DType dtype, const std::vector<T>& values) {
    KvStateTensor tensor{std::move(name), dtype, {static_cast<int64_t>(values.size())}, {}};
    tensor.bytes.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
  }
};

}  // namespace quern
