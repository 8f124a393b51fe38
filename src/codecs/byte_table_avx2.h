// SPDX-License-Identifier: Apache-2.0
// 32 lookups in a table of 16 to 256 bytes. Only for sources compiled for AVX2.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {
namespace {  // NOLINT: internal linkage, there is one of this name for AVX-512

template <int kBits>  // 4 to 8
class ByteTable {
 public:
  explicit ByteTable(const void* bytes) {
    const auto* sixteen = static_cast<const __m128i*>(bytes);
    for (__m256i& table : tables_) table = _mm256_broadcastsi128_si256(_mm_loadu_si128(sixteen++));
  }
  // Bits of an index above the lowest kBits are ignored.
  __m256i operator()(__m256i index) const {
    const __m256i low = _mm256_and_si256(index, _mm256_set1_epi8(0x0f));
    __m256i found[kTables];
    for (int i = 0; i < kTables; ++i) found[i] = _mm256_shuffle_epi8(tables_[i], low);
    // A bit of the index, moved to the top of its byte, chooses between neighbours.
    for (int bit = 4; bit < kBits; ++bit) {
      const __m256i is_odd = _mm256_slli_epi16(index, 7 - bit);
      for (int i = 0; i < kTables >> (bit - 3); ++i) {
        found[i] = _mm256_blendv_epi8(found[2 * i], found[2 * i + 1], is_odd);
      }
    }
    return found[0];
  }

 private:
  static constexpr int kTables = 1 << (kBits - 4);
  __m256i tables_[kTables];
};

}  // namespace
}  // namespace quern
