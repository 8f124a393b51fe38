// SPDX-License-Identifier: Apache-2.0
// Passes over the rows of activations, shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"
#include "tensor/view.h"

namespace quern {

// Rows per piece of an elementwise pass: about 8K values.
inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, cols));
}

// body(i) for every row i of x.
template <class T, class Body>
void for_rows(MatrixView<T> x, const Body& body) {
  parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace quern
