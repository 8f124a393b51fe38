// SPDX-License-Identifier: Apache-2.0
// The seam between the int codec and its faster decoders.
#pragma once

#include <cstdint>

namespace quern {

// One row: dst[i] = scale[i / group] * (code_i - zero[i / group]), i < n, rounded after the
// difference and after the product. `codes` is a stream (bit_stream.h) of n codes, `scales` and
// `half_zeros` hold f16 bit patterns (may be unaligned). At most one of `zeros` and `half_zeros` is
// set; neither means 2^(bits - 1) everywhere.
struct IntRow {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* zeros;
  const uint8_t* half_zeros;
  int64_t n;
  int64_t group;
  int bits;
};

void int_decode_row_ref(const IntRow& row, float* dst);
// Needs AVX-512 VBMI and group % 16 == 0 or group >= n.
void int_decode_row_avx512(const IntRow& row, float* dst);
// Needs AVX2, BMI2, and group % 16 == 0 or group >= n.
void int_decode_row_avx2(const IntRow& row, float* dst);

}  // namespace quern
