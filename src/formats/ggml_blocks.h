// SPDX-License-Identifier: Apache-2.0
// Element types of GGUF tensors: their sizes, and the values of those that are decoded here.
// A row of n weights is n / block consecutive blocks of a fixed number of bytes. All arithmetic is
// in float, one operation at a time, so values agree bit for bit on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/status.h"
#include "formats/checkpoint.h"
#include "tensor/dtype.h"

namespace quern {

struct GgmlType {
  uint32_t id = 0;
  std::string_view name;         // "Q4_K"
  int64_t block = 1;             // weights per block
  int64_t bytes = 0;             // bytes per block
  std::optional<DType> dtype{};  // set for plain element types
  // dst[n] = values of n weights (a multiple of block); src unaligned. Null: not decoded.
  void (*dequantize)(const std::byte* src, int64_t n, float* dst) = nullptr;
};

// The row of a type id; null for ids that are unknown or retired.
const GgmlType* find_ggml_type(uint32_t id);
const GgmlType* find_ggml_type(DType dtype);  // null for types GGUF does not have

// dst[n_rows, cols] = rows [first_row, first_row + n_rows) of a matrix read from GGUF. The caller
// has checked the range. Fails for types that are not decoded.
Status read_ggml_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows, float* dst);

// dst[i] = entry (i, col) for all rows and n columns from first_col on: dst[n, rows], transposed.
Status read_ggml_cols(const TensorInfo& tensor, int64_t first_col, int64_t n_cols, float* dst);

}  // namespace quern
