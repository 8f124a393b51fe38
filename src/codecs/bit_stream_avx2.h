// SPDX-License-Identifier: Apache-2.0
// Codes of a stream (bit_stream.h) as bytes, for sources compiled for AVX2 and BMI2.
#pragma once

#include <cstdint>
#include <cstring>

#include "codecs/bit_stream.h"
#include "kernels/intrinsics.h"

namespace quern {

// Codes i to i + 15 as bytes, i a multiple of 16, of a stream of `n` codes; zeros past the end.
// Reads only bytes of the stream.
inline __m128i sixteen_codes_avx2(const uint8_t* stream, int64_t i, int64_t n, int bits) {
  const uint8_t* src = stream + i / 8 * bits;
  const int64_t left = stream_bytes(n, bits) - i / 8 * bits;
  alignas(16) uint8_t bytes[16] = {};
  if (left < 16) {
    std::memcpy(bytes, src, static_cast<size_t>(left));
    src = bytes;
  }
  // Eight codes stand in the lowest `bits` bytes of a word; pdep gives each a byte of its own.
  const uint64_t fields = 0x0101010101010101ull * ((1u << bits) - 1u);
  uint64_t low, high;
  std::memcpy(&low, src, 8);
  std::memcpy(&high, src + bits, 8);
  return _mm_set_epi64x(static_cast<int64_t>(_pdep_u64(high, fields)),
                        static_cast<int64_t>(_pdep_u64(low, fields)));
}

}  // namespace quern
