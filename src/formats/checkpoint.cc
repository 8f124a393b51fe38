// SPDX-License-Identifier: Apache-2.0
#include "formats/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "formats/checkpoint_readers.h"

namespace quern {

int64_t matrix_rows(const TensorInfo& tensor) {
  return tensor.shape.size() < 2 ? 1 : tensor.shape[0];
}

int64_t matrix_cols(const TensorInfo& tensor) {
  int64_t cols = 1;  // below the element count unless the tensor is empty
  for (size_t axis = tensor.shape.size() < 2 ? 0 : 1; axis < tensor.shape.size(); ++axis) {
    if (tensor.shape[axis] == 0) return 0;
    if (__builtin_mul_overflow(cols, tensor.shape[axis], &cols)) return 0;  // shape[0] is 0
  }
  return cols;
}

const TensorInfo* find_tensor(const std::vector<TensorInfo>& sorted, std::string_view name) {
  const auto found = std::lower_bound(
      sorted.begin(), sorted.end(), name,
      [](const TensorInfo& tensor, std::string_view key) { return tensor.name < key; });
  return found != sorted.end() && found->name == name ? &*found : nullptr;
}

Status check_row_range(const TensorInfo& tensor, int64_t first_row, int64_t n_rows) {
  const int64_t rows = matrix_rows(tensor);
  if (first_row < 0 || n_rows < 0 || first_row > rows || n_rows > rows - first_row) {
    return error("tensor '{}': rows [{}, {} + {}) of {}", tensor.name, first_row, first_row, n_rows,
                 rows);
  }
  return {};
}

uint64_t Checkpoint::tensor_bytes() const {
  uint64_t total = 0;
  for (const TensorInfo& tensor : tensors()) total += tensor.n_bytes;
  return total;
}

Result<std::unique_ptr<Checkpoint>> Checkpoint::open(const std::string& path) {
  std::error_code failure;
  const auto status = std::filesystem::status(path, failure);
  if (failure && status.type() != std::filesystem::file_type::not_found) {
    return error("{}: {}", path, failure.message());
  }
  switch (status.type()) {
    case std::filesystem::file_type::directory:
      return open_hf_checkpoint(path);
    case std::filesystem::file_type::regular:
      return open_checkpoint_file(path);
    case std::filesystem::file_type::not_found:
      return error("{}: no such file or directory; expected a model directory or a .gguf file",
                   path);
    default:
      return error("{}: neither a directory nor a regular file", path);
  }
}

}  // namespace quern
