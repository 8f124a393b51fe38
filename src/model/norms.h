// SPDX-License-Identifier: Apache-2.0
// Norms of rows of activations.
#pragma once

#include <cstdint>
#include <vector>

#include "model/layer_desc.h"
#include "tensor/view.h"

namespace quern {

struct NormWeight {
  std::vector<float> gain, bias;  // gain with its offset already added; empty: absent
};

// dst <- norm(src) for one row; dst may be src. The mean square is taken over `divisor` values, of
// which those beyond n were cut off; 0: n.
void norm_row(const NormDesc& norm, const NormWeight& weight, const float* src, int64_t n,
              float* dst, int64_t divisor = 0);

// y += norm(x); x is overwritten.
void add_normed(const NormDesc& norm, const NormWeight& weight, float* x, int64_t n, float* y);

// dst <- norm(src), row by row; dst may be src.
void apply_norm(const NormDesc& norm, const NormWeight& weight, MatrixView<const float> src,
                MatrixView<float> dst);

}  // namespace quern
