// SPDX-License-Identifier: Apache-2.0
// A scale per row, F16, for codecs whose codebook is made for weights of variance one.
#pragma once

#include <cstddef>

#include "codecs/codec.h"

namespace quern {

// scales[i] = sqrt(v_i) / spread, at least the smallest half unless the row is zero. v is the mean
// square of row i, more where errors are fed back: with a relative error of `mse`, what is coded
// has v = mean square + feedback mse v. (At most half of v is taken to be feedback.)
void fit_row_scales(const MatrixSource& source, double mse, double spread, std::byte* scales);

float row_scale(const std::byte* scales, int64_t row);

}  // namespace quern
