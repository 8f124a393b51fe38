// SPDX-License-Identifier: Apache-2.0
// The trellis code function for 16 windows at once. Only for sources compiled for AVX-512 VBMI.
#pragma once

#include "codecs/trellis_code.h"
#include "kernels/intrinsics.h"

namespace quern {

template <int kLevelBits>
class TrellisLevels {
 public:
  explicit TrellisLevels(const TrellisCode& code) {
    for (int i = 0; i < kTables; ++i) tables_[i] = _mm512_loadu_si512(code.levels + 64 * i);
    multiplier_ = _mm512_set1_epi32(
        static_cast<int>(static_cast<uint16_t>(code.multiplier_low) |
                         static_cast<uint32_t>(static_cast<uint16_t>(code.multiplier_high)) << 16));
  }

  // The values of 16 windows as 32-bit integers.
  __m512i values(__m512i windows) const {
    const __m512i u = _mm512_madd_epi16(windows, multiplier_);
    // Only the lowest byte of each lane counts; table lookups ignore the bits above their index.
    const __m512i index = _mm512_srli_epi32(u, 16 - kLevelBits);
    __m512i level;
    if constexpr (kLevelBits == 6) {
      level = _mm512_permutexvar_epi8(index, tables_[0]);
    } else if constexpr (kLevelBits == 7) {
      level = _mm512_permutex2var_epi8(tables_[0], index, tables_[1]);
    } else {
      level = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index),
                                     _mm512_permutex2var_epi8(tables_[0], index, tables_[1]),
                                     _mm512_permutex2var_epi8(tables_[2], index, tables_[3]));
    }
    return _mm512_srai_epi32(_mm512_slli_epi32(level, 24), 24);
  }

 private:
  static constexpr int kTables = 1 << (kLevelBits - 6);
  __m512i tables_[kTables];
  __m512i multiplier_;
};

}  // namespace quern
