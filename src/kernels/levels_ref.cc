// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/tables.h"

namespace quern {
namespace {

void range(const float* x, int64_t n, float* low, float* high) {
  float least = 0, most = 0;
  bool is_finite = true;
  for (int64_t i = 0; i < n; ++i) {
    is_finite = is_finite && std::isfinite(x[i]);
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
  }
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  *low = is_finite ? least + 0.0f : kNone;  // a zero is +0
  *high = is_finite ? most + 0.0f : kNone;
}

int level_of(float x, float to_levels, float low, float high) {
  float level = x * to_levels;
  level = level > low ? level : low;
  level = level < high ? level : high;
  return static_cast<int>(std::nearbyint(level));
}

void round_levels(const float* x, int64_t k, int64_t group, float to_levels, int low, int high,
                  int8_t* levels, int32_t* offsets) {
  const auto least = static_cast<float>(low), most = static_cast<float>(high);
  for (int64_t j0 = 0; j0 < k; j0 += group) {
    int32_t sum = 0;
    for (int64_t j = j0; j < j0 + group; ++j) {
      const bool is_zero = j >= k || to_levels == 0;
      const int level = is_zero ? 0 : level_of(x[j], to_levels, least, most);
      *levels++ = static_cast<int8_t>(level);
      sum += level;
    }
    *offsets++ = -kPanelZero * sum;
  }
}

}  // namespace

void fill_levels_ref(KernelTable& table) {
  table.range = range;
  table.round_levels = round_levels;
}

}  // namespace quern
