// SPDX-License-Identifier: Apache-2.0
// Whole numbers with a scale and a least value per group: the page of kv_int.cc, and its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quern {

// A matrix [rows, cols], cols a multiple of 16 and rows * cols of 64, in row order, as
//     x = fma(code, scale, least).
// Codes lie in lines of 64 values. A plane of w bits (1, 2, 4, 8) of a line is w sixteens of bytes,
// or half a sixteen for one bit:
//     w = 8    byte j has value j,
//     w = 4    byte 16 h + j has values 32 h + j and, above it, 32 h + 16 + j,
//     w = 2    byte j has values j, 16 + j, 32 + j, 48 + j from its lowest bits up,
//     w = 1    bit j has value j.
// Three bits are a plane of two and, behind all of it, a plane of one above them.
struct KvIntShape {
  int bits = 0;  // 1 to 4, or 8
  int64_t rows = 0, cols = 0;
  // Who shares a scale: `group` neighbours in a row, parameters [rows, cols / group]; or in a
  // column, parameters [rows / group, cols].
  int64_t group = 0;
  bool is_along_rows = true;

  int64_t n_params() const { return rows * cols / group; }
  int64_t code_bytes() const { return rows * cols * bits / 8; }
  int64_t page_bytes() const { return code_bytes() + n_params() * 4; }
};

// A page: codes, then scales and least values, both F16 [n_params].
void decode_kv_int_ref(const KvIntShape& shape, const std::byte* page, float* x);
void decode_kv_int_avx512(const KvIntShape& shape, const std::byte* page, float* x);

}  // namespace quern
