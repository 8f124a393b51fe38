// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/panels_round.h"
#include "kernels/tables.h"

namespace quern {
namespace {

// Largest |x| as an integer: infinities and NaN compare above all numbers.
uint32_t largest_magnitude(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  return largest;
}

int level_of(float x, const GroupRounding& rounding) {
  return rounding.to_levels == 0 ? 0 : static_cast<int>(std::nearbyint(x * rounding.to_levels));
}

void quantize_row(const float* x, int64_t k, int64_t group, int8_t* levels, float* scales,
                  int32_t* offsets) {
  for (int64_t j0 = 0; j0 < k; j0 += group) {
    const int64_t width = std::min(group, k - j0);
    const GroupRounding rounding(largest_magnitude(x + j0, width));
    int32_t sum = 0;
    for (int64_t j = 0; j < group; ++j) {
      const int level = j < width ? level_of(x[j0 + j], rounding) : 0;
      *levels++ = static_cast<int8_t>(level);
      sum += level;
    }
    *scales++ = rounding.scale;
    *offsets++ = -kPanelZero * sum;
  }
}

void quantize_panel(const float* w, int64_t n_rows, int64_t k, int64_t group, uint8_t* levels,
                    float* scales) {
  const int64_t n_groups = (k + group - 1) / group;
  std::fill_n(levels, n_groups * group * kPanelRows, kPanelZero);
  std::fill_n(scales, n_groups * kPanelRows, 0.0f);
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const float* x = w + r * k + g * group;
      const int64_t width = std::min(group, k - g * group);
      const GroupRounding rounding(largest_magnitude(x, width));
      scales[g * kPanelRows + r] = rounding.scale;
      for (int64_t i = 0; i < width; ++i) {
        const int64_t j = g * group + i;
        levels[(j / 4 * kPanelRows + r) * 4 + j % 4] =
            static_cast<uint8_t>(kPanelZero + level_of(x[i], rounding));
      }
    }
  }
}

void panel_dot(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) {
  for (int64_t i = 0; i < x.n; ++i) {
    for (int64_t row = 0; row < w.n_rows; ++row) {
      const int64_t panel = row / kPanelRows, r = row % kPanelRows;
      const uint8_t* levels = w.levels + panel * w.levels_stride;
      const float* scales = w.scales + panel * w.scales_stride;
      float& sum = y[i * ld_y + row];
      if (w.first_group == 0) sum = 0;
      for (int64_t g = 0; g < w.n_groups; ++g) {
        const int64_t place = i * x.n_groups + w.first_group + g;
        const int8_t* rows = x.levels + i * x.stride + (w.first_group + g) * x.group;
        int32_t dot = 0;
        for (int64_t j = 0; j < x.group; ++j) {
          const int64_t at = ((g * x.group + j) / 4 * kPanelRows + r) * 4 + j % 4;
          dot += (levels[at] - kPanelZero) * rows[j];
        }
        const float scale = scales[g * kPanelRows + r] * x.scales[place];
        sum = std::fma(static_cast<float>(dot), scale, sum);
      }
    }
  }
}

}  // namespace

void fill_panels_ref(KernelTable& table) {
  table.quantize_row = quantize_row;
  table.quantize_panel = quantize_panel;
  table.panel_dot = panel_dot;
}

}  // namespace quern
