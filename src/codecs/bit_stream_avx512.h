// SPDX-License-Identifier: Apache-2.0
// Codes of a stream (bit_stream.h) as bytes, for sources compiled for AVX-512 VBMI.
//
// 64 codes of any width in two instructions: vpermb gives each group of eight codes the `bits`
// bytes that hold them, vpmultishiftqb cuts the eight fields out of each 64-bit lane.
#pragma once

#include <cstdint>

#include "codecs/bit_stream.h"
#include "kernels/intrinsics.h"

namespace quern {

class CodeReaderAvx512 {
 public:
  CodeReaderAvx512(const uint8_t* stream, int64_t n, int bits)
      : stream_(stream), n_bytes_(stream_bytes(n, bits)), bits_(bits) {
    alignas(64) uint8_t index[64], shift[64];
    for (int i = 0; i < 64; ++i) {
      index[i] = static_cast<uint8_t>((i / 8) * bits + i % 8);
      shift[i] = static_cast<uint8_t>((i % 8) * bits);
    }
    index_ = _mm512_load_si512(index);
    shifts_ = _mm512_load_si512(shift);
    mask_ = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
  }

  // Codes i to i + 63 as bytes, i a multiple of 8; zeros past the end. Reads only bytes of the
  // stream.
  __m512i read(int64_t i) const {
    const int64_t first = i / 8 * bits_;
    const int64_t left = n_bytes_ - first;
    const int64_t present = left < 8 * bits_ ? left : 8 * bits_;
    const __mmask64 in_row = present == 64 ? ~0ull : (1ull << present) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(in_row, stream_ + first);
    const __m512i spread = _mm512_permutexvar_epi8(index_, bytes);
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts_, spread), mask_);
  }

 private:
  const uint8_t* stream_;
  int64_t n_bytes_;
  int64_t bits_;
  __m512i index_, shifts_, mask_;
};

// The q-th sixteen of 64 bytes as 32-bit integers.
inline __m512i quarter_avx512(__m512i bytes, int q) {
  switch (q) {
    case 0:
      return _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes));
    case 1:
      return _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 1));
    case 2:
      return _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 2));
    default:
      return _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 3));
  }
}

}  // namespace quern
