// SPDX-License-Identifier: Apache-2.0
// Little-endian streams of codes of a fixed width, 1 to 16 bits: code i takes bits i * bits to
// (i + 1) * bits - 1, bit k of the stream being bit k % 8 of byte k / 8.
#pragma once

#include <cstdint>

#include "base/checked.h"

namespace quern {

inline int64_t stream_bytes(int64_t n, int bits) { return ceil_div<int64_t>(n * bits, 8); }

// Writes code i and no bit beside it.
inline void put_code(uint8_t* stream, int64_t i, int bits, unsigned code) {
  const int64_t byte = i * bits / 8;
  const int shift = static_cast<int>(i * bits % 8);
  const unsigned mask = ((1u << bits) - 1u) << shift;
  const unsigned field = code << shift;
  stream[byte] = static_cast<uint8_t>((stream[byte] & ~mask) | field);
  if (shift + bits > 8) {
    stream[byte + 1] = static_cast<uint8_t>((stream[byte + 1] & ~(mask >> 8)) | (field >> 8));
  }
  if (shift + bits > 16) {
    stream[byte + 2] = static_cast<uint8_t>((stream[byte + 2] & ~(mask >> 16)) | (field >> 16));
  }
}

// Reads only the bytes that hold code i.
inline unsigned get_code(const uint8_t* stream, int64_t i, int bits) {
  const int64_t bit = i * bits;
  unsigned word = stream[bit / 8];
  if (bit % 8 + bits > 8) word |= static_cast<unsigned>(stream[bit / 8 + 1]) << 8;
  if (bit % 8 + bits > 16) word |= static_cast<unsigned>(stream[bit / 8 + 2]) << 16;
  return (word >> (bit % 8)) & ((1u << bits) - 1u);
}

}  // namespace quern
