// SPDX-License-Identifier: Apache-2.0
// The seam between the ternary codec and its decoders of five values in a byte.
#pragma once

#include <cstdint>

namespace quern {

// One row: dst[i] = -scale, 0 or scale for the digit 0, 1 or 2 of column i, i < n, with the scale
// of group i / group. Byte b holds columns 5 b to 5 b + 4; the digit of column 5 b + k is
//     floor(3 * ((3^k * byte) mod 256) / 256),
// so every byte is valid (TQ1_0 of ggml).
struct TritRow {
  const uint8_t* codes;  // [ceil(n / 5)]
  const float* scales;   // [groups]
  int64_t n, group;
};

void trits_decode_row_ref(const TritRow& row, float* dst);
// Need group % 16 == 0 or group >= n.
void trits_decode_row_avx2(const TritRow& row, float* dst);
void trits_decode_row_avx512(const TritRow& row, float* dst);

}  // namespace quern
