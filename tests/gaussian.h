// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "base/random.h"
#include "tensor/matrix.h"

namespace quern {

// Standard normal entries, row after row.
inline Matrix<float> gaussian(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> w(rows, cols);
  Random random(seed);
  for (int64_t i = 0; i < rows * cols; ++i) w.data()[i] = static_cast<float>(random.gaussian());
  return w;
}

}  // namespace quern
