// SPDX-License-Identifier: Apache-2.0
// A checkpoint: named tensors mapped from disk plus the configuration beside them. Hugging Face
// directories and GGUF files are read through this one interface, under Hugging Face's names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"
#include "tensor/shape.h"

namespace quern {

using Json = nlohmann::json;

// One stored tensor. `bytes` may be unaligned and stays valid as long as its checkpoint. They are
// the bytes as stored: a GGUF file may keep rows in another order, so values come from read_rows.
// GGML block types keep dtype kU8 and name their type in `block_type` (0 means none).
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;  // logical shape, slowest axis first
  const std::byte* bytes = nullptr;
  size_t n_bytes = 0;
  uint32_t block_type = 0;  // GGML type id of a block-coded tensor
};

// A tensor seen as a matrix of shape[0] rows; a vector or scalar is one row.
int64_t matrix_rows(const TensorInfo& tensor);
int64_t matrix_cols(const TensorInfo& tensor);

// The entry of a list sorted by name; null if absent.
const TensorInfo* find_tensor(const std::vector<TensorInfo>& sorted, std::string_view name);

class Checkpoint {
 public:
  // `path` is a directory with config.json and safetensors, or a .gguf file. Pickle checkpoints
  // (.bin, .pt, .pth) are refused with advice.
  static Result<std::unique_ptr<Checkpoint>> open(const std::string& path);

  virtual ~Checkpoint() = default;

  const std::string& path() const { return path_; }
  const Json& config() const { return config_; }  // config.json, or its equal made from GGUF keys
  virtual const std::vector<TensorInfo>& tensors() const = 0;       // sorted by name
  virtual const TensorInfo* find(std::string_view name) const = 0;  // null if absent

  // Values of rows [first_row, first_row + n_rows) of a tensor seen as a matrix of matrix_rows
  // rows: dst[n_rows, matrix_cols]. F64, F32, F16, BF16, F8_E4M3, F8_E5M2 and the block types that
  // ggml_blocks.h decodes; fails for types that are not numbers to us.
  virtual Status read_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows,
                           float* dst) const = 0;

  // Says that a tensor's pages will not be needed soon (keeps the resident size at one layer).
  virtual void release(const TensorInfo& tensor) const = 0;

  // Bytes of all tensors as stored.
  uint64_t tensor_bytes() const;
  // Bytes of the files that hold them, headers included.
  virtual uint64_t file_bytes() const { return tensor_bytes(); }

 protected:
  std::string path_;
  Json config_;
};

}  // namespace quern
