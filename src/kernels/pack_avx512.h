// SPDX-License-Identifier: Apache-2.0
// What roundings end with: 64 integers of 32 bits as bytes, and sums of bytes; floats as bfloat16.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

// Packing works in 128-bit lanes: of four vectors packed, lane l has four columns of each.
inline __m512i in_order_of_packed(__m512i packed) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, packed);
}

// The bytes of a, b, c, d in this order; what does not fit into an int8 is held at its ends.
inline __m512i pack_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i low = _mm512_packs_epi32(a, b), high = _mm512_packs_epi32(c, d);
  return in_order_of_packed(_mm512_packs_epi16(low, high));
}
// The same for uint8_t.
inline __m512i pack_unsigned_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i low = _mm512_packs_epi32(a, b), high = _mm512_packs_epi32(c, d);
  return in_order_of_packed(_mm512_packus_epi16(low, high));
}

// The upper halves of the 32 lanes of `low` and `high`, in order: bfloat16 of such floats.
inline __m512i upper_halves(__m512i low, __m512i high) {
  alignas(64) static constexpr auto kUpper = [] {
    std::array<uint16_t, 32> places{};
    for (uint16_t i = 0; i < 32; ++i) places[i] = static_cast<uint16_t>(2 * i + 1);
    return places;
  }();
  return _mm512_permutex2var_epi16(low, _mm512_load_si512(kUpper.data()), high);
}

// sums += in each lane four of the signed bytes.
inline __m512i add_bytes(__m512i sums, __m512i bytes) {
  return _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), bytes);
}

}  // namespace quern
