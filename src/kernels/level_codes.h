// SPDX-License-Identifier: Apache-2.0
// Codes of 1 to 4 or 8 bits each: n of them, n a multiple of 64, in lines of 64 values. A plane of
// w bits (1, 2, 4, 8) of a line is w sixteens of bytes, or half a sixteen for one bit:
//     w = 8    byte j has value j,
//     w = 4    byte 16 h + j has values 32 h + j and, above it, 32 h + 16 + j,
//     w = 2    byte j has values j, 16 + j, 32 + j, 48 + j from its lowest bits up,
//     w = 1    bit j has value j.
// Three bits are a plane of two and, behind all of it, a plane of one above them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace quern {

inline constexpr int64_t level_code_bytes(int bits, int64_t n) { return n * bits / 8; }

// Adds code number `at` of n to bytes that are zero there.
void put_level_code(int bits, int64_t n, int64_t at, int code, std::byte* codes);
int level_code_at(int bits, int64_t n, const std::byte* codes, int64_t at);

// Codes to be read.
struct LevelCodes {
  int bits = 8;
  int64_t n = 0;
  const std::byte* codes = nullptr;
  const uint8_t* table = nullptr;  // [2^bits], of at most 4 bits: what codes stand for; or null

  int at(int64_t i) const {
    const int code = level_code_at(bits, n, codes, i);
    return table != nullptr ? table[code] : code;
  }
};

// The codes, or what they stand for, as bytes [n].
void unpack_level_codes(const LevelCodes& codes, uint8_t* bytes);
void unpack_level_codes_ref(const LevelCodes& codes, uint8_t* bytes);
void unpack_level_codes_avx2(const LevelCodes& codes, uint8_t* bytes);
void unpack_level_codes_avx512(const LevelCodes& codes, uint8_t* bytes);

// Calls f with an integral constant: the width of the codes.
template <class F>
void with_level_bits(int bits, const F& f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    default:
      return f(std::integral_constant<int, 8>());
  }
}

}  // namespace quern
