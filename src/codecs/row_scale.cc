// SPDX-License-Identifier: Apache-2.0
#include "codecs/row_scale.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_types.h"

namespace quern {

void fit_row_scales(const MatrixSource& source, double mse, double spread, std::byte* scales) {
  const double added = std::min(static_cast<double>(source.feedback) * mse, 0.5);
  for (int64_t i = 0; i < source.w.rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < source.w.cols; ++j) sum += std::pow(source.w(i, j), 2);
    const double variance = sum / static_cast<double>(source.w.cols) / (1 - added);
    const double scale = std::min(std::sqrt(variance) / spread, 65504.0);
    uint16_t half = float_to_f16(static_cast<float>(scale));
    if (scale > 0) half = std::max<uint16_t>(half, 1);
    std::memcpy(scales + 2 * i, &half, 2);
  }
}

float row_scale(const std::byte* scales, int64_t row) { return half_at(scales, row); }

}  // namespace quern
