// SPDX-License-Identifier: Apache-2.0
// How a group of numbers is rounded to whole numbers, for every ISA.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace quern {

struct GroupRounding {
  float scale = 0;      // of a level
  float to_levels = 0;  // level = x * to_levels; 0: all levels are zero

  // Levels run to `most`. `largest` are the bits of the largest |x|, or more where one is infinite
  // or NaN.
  explicit GroupRounding(uint32_t largest, float most = 127) {
    constexpr uint32_t kInfinity = 0x7f800000u, kTiny = (127u - 100u) << 23;
    if (largest >= kInfinity) {
      scale = std::numeric_limits<float>::quiet_NaN();
    } else if (largest >= kTiny) {
      scale = std::bit_cast<float>(largest) / most;
      to_levels = most / std::bit_cast<float>(largest);
    }
  }
};

}  // namespace quern
