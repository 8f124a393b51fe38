// SPDX-License-Identifier: Apache-2.0
#include "kernels/vec_math.h"

#include <bit>
#include <limits>

namespace quern {

// x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172:
// the series through s^21 leaves 2e-18.
float log_of(float x) {
  if (!(x < std::numeric_limits<float>::infinity())) return x;  // infinity or NaN
  uint64_t bits = std::bit_cast<uint64_t>(static_cast<double>(x));
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double s2 = s * s;
  double series = 0;
  for (int odd = 21; odd >= 1; odd -= 2) series = series * s2 + 1.0 / odd;
  return static_cast<float>(exponent * 0.69314718055994531 + 2 * s * series);
}

}  // namespace quern
