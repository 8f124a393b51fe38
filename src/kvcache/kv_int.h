// SPDX-License-Identifier: Apache-2.0
// Whole numbers with a scale and a least value per group: the page of kv_int.cc, and its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvcache/kv_codes.h"

namespace quern {

// A matrix [rows, cols], cols a multiple of 16 and rows * cols of 64, in row order, as
//     x = fma(code, scale, least).
// Codes lie as in kv_codes.h.
struct KvIntShape {
  int bits = 0;  // 1 to 4, or 8
  int64_t rows = 0, cols = 0;
  // Who shares a scale: `group` neighbours in a row, parameters [rows, cols / group]; or in a
  // column, parameters [rows / group, cols].
  int64_t group = 0;
  bool is_along_rows = true;

  int64_t n_params() const { return rows * cols / group; }
  int64_t code_bytes() const { return kv_code_bytes(bits, rows * cols); }
  int64_t page_bytes() const { return code_bytes() + n_params() * 4; }
};

// A page: codes, then scales and least values, both F16 [n_params].
void decode_kv_int_ref(const KvIntShape& shape, const std::byte* page, float* x);
void decode_kv_int_avx512(const KvIntShape& shape, const std::byte* page, float* x);

}  // namespace quern
