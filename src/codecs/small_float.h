// SPDX-License-Identifier: Apache-2.0
// Floats of at most 8 bits as tables of values by code: sign, exponent, mantissa from the highest
// bit, bias 2^(exponent bits - 1) - 1, subnormals, no infinities. e4m3 and e5m2 are those of the
// OCP 8-bit specification: 7f and ff of e4m3 are NaN, e5m2 has the infinities and NaNs of IEEE.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

namespace quern {

inline std::vector<float> small_float_levels(int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int n = 1 << (exponent_bits + mantissa_bits);
  std::vector<float> levels;
  for (int code = 0; code < n; ++code) {
    const int exponent = code >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
    float value = std::ldexp(static_cast<float>(whole),
                             (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
    if (exponent_bits == 4 && mantissa_bits == 3 && code == n - 1) {
      value = std::numeric_limits<float>::quiet_NaN();
    } else if (exponent_bits == 5 && mantissa_bits == 2 && exponent == 31) {
      value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                            : std::numeric_limits<float>::quiet_NaN();
    }
    levels.push_back(value);
  }
  for (int code = 0; code < n; ++code) levels.push_back(-levels[static_cast<size_t>(code)]);
  return levels;
}

}  // namespace quern
