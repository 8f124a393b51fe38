// SPDX-License-Identifier: Apache-2.0
// 64 lookups in a table of 64, 128 or 256 bytes. Only for sources compiled for AVX-512 VBMI.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

template <int kBits>  // 6, 7 or 8
class ByteTable {
 public:
  explicit ByteTable(const void* bytes) {
    for (int i = 0; i < kTables; ++i) {
      tables_[i] = _mm512_loadu_si512(static_cast<const uint8_t*>(bytes) + 64 * i);
    }
  }
  // Bits of an index above the lowest kBits are ignored.
  __m512i operator()(__m512i index) const {
    if constexpr (kBits == 6) return _mm512_permutexvar_epi8(index, tables_[0]);
    const __m512i lower = _mm512_permutex2var_epi8(tables_[0], index, tables_[1]);
    if constexpr (kBits == 7) return lower;
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower,
                                  _mm512_permutex2var_epi8(tables_[2], index, tables_[3]));
  }

 private:
  static constexpr int kTables = 1 << (kBits - 6);
  __m512i tables_[4];
};

}  // namespace quern
