// SPDX-License-Identifier: Apache-2.0
// Views never own; a matrix is row-major with a row stride.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/check.h"

namespace quern {

template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements between starts of rows, >= cols

  MatrixView() = default;
  MatrixView(T* data, int64_t rows, int64_t cols) : MatrixView(data, rows, cols, cols) {}
  MatrixView(T* data, int64_t rows, int64_t cols, int64_t stride)
      : data(data), rows(rows), cols(cols), stride(stride) {}

  T* row(int64_t i) const { return data + i * stride; }
  T& operator()(int64_t i, int64_t j) const { return data[i * stride + j]; }

  // Rows [first, first + n) and columns [first, first + n).
  MatrixView row_range(int64_t first, int64_t n) const {
    QUERN_DCHECK(first >= 0 && n >= 0 && first + n <= rows);
    return {row(first), n, cols, stride};
  }
  MatrixView col_range(int64_t first, int64_t n) const {
    QUERN_DCHECK(first >= 0 && n >= 0 && first + n <= cols);
    return {data + first, rows, n, stride};
  }

  operator MatrixView<const T>() const  // NOLINT: a view of const is always a safe view
      requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }
};

}  // namespace quern
