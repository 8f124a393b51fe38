// SPDX-License-Identifier: Apache-2.0
// 8-bit floats as storage. Every value is exact in float.
//   E4M3: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN
//   E5M2: sign, 5 exponent bits, 2 mantissa bits: the high byte of an IEEE half
#pragma once

#include <cstdint>
#include <limits>

#include "base/float_types.h"

namespace quern {

inline float f8e4m3_to_float(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  // As a half (bias 15) the same bits mean 2^-8 of the value, subnormals included.
  const uint16_t half = static_cast<uint16_t>((bits & 0x80) << 8 | (bits & 0x7f) << 7);
  return f16_to_float(half) * 256.0f;
}

inline float f8e5m2_to_float(uint8_t bits) {
  return f16_to_float(static_cast<uint16_t>(bits << 8));
}

}  // namespace quern
