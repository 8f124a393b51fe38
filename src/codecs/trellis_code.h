// SPDX-License-Identifier: Apache-2.0
// The code function of the trellis codec: the last 32 bits of a stream to the value they stand for.
//
// Definition. With the window's low and high half as signed 16-bit numbers,
//     u = low * multiplier_low + high * multiplier_high,
//     value = level[ bits 16 - level_bits .. 15 of u ],
// where level[] are 2^level_bits equally probable values of a Gaussian in int8. The newest bits are
// the lowest of the window. Multiplying them by about 2^16 / 2^bits (times an odd number) spreads
// the continuations of a path evenly over the levels, which random hashes do not: at 2 bits the
// error is 2 % below that of the sum of the four bytes of a 32-bit product.
//
// The multipliers were found by random search: the lowest error of a beam of 512 on 20 000 Gaussian
// numbers, of 150 to 200 pairs at each rate. The best dozen agree within 0.3 %.
#pragma once

#include <cstdint>

namespace quern {

struct TrellisCode {
  int eighths;     // bits per weight, in eighths: 8 .. 40
  int level_bits;  // 6, 7 or 8
  int16_t multiplier_low, multiplier_high;
  float deviation;  // of the levels, in int8 units
  float spread;     // best deviation of reproduction over that of a Gaussian source
  float mse;        // at that spread, unit Gaussian, beam of 512
  int8_t levels[256];

  // Bits of the first `count` of 8 weights.
  int end_bit(int count) const { return count * eighths >> 3; }
  int step_bits(int i) const { return end_bit(i + 1) - end_bit(i); }  // of weight i of 8
  // Weights that the search decides together: all that a window holds the bits of, 8 or 4.
  int run() const { return eighths <= 32 ? 8 : 4; }

  int8_t value(uint32_t window) const {
    const int32_t u = static_cast<int16_t>(window) * multiplier_low +
                      static_cast<int16_t>(window >> 16) * multiplier_high;
    return levels[static_cast<uint32_t>(u) >> (16 - level_bits) & ((1u << level_bits) - 1)];
  }
};

const TrellisCode& trellis_code(int eighths);

// Upper halves of the levels, which are symmetric.
extern const int8_t kTrellisLevels64[32];
extern const int8_t kTrellisLevels128[64];
extern const int8_t kTrellisLevels256[128];

}  // namespace quern
