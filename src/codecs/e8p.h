// SPDX-License-Identifier: Apache-2.0
// The codebooks of e8p, and the seam between the codec and its faster searches and decoders.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace quern {

// Points are whole numbers of quarters. E8P: code = 256 * row + signs. Bits of `signs` negate
// coordinates of points[row], whose coordinate 7 is already negated where the row's sum is odd, so
// that the allowed patterns are those of even parity. An odd parity of `signs` means that 1/4 is
// taken from all coordinates and bit 0 is to be toggled first; an even one that 1/4 is added.
struct E8pTables {
  alignas(64) int8_t points[256][8];  // E8P before signs and shift
  alignas(64) uint16_t packed[256];   // magnitudes less 1/2, two bits each, coordinate 0 lowest
  uint8_t is_odd[256];                // parity of the sum of a row
  alignas(64) float rows[8][256];     // magnitudes, by coordinate
  alignas(64) float norms[256];       // of rows
  alignas(64) float flips[2][256];    // 4 where the row's parity is not that of the index, else 0
  alignas(64) int8_t e8[256][8];      // the 256 points at one bit a weight
  alignas(64) float e8_rows[8][256];
  alignas(64) float e8_norms[256];
};
const E8pTables& e8p_tables();

// The point of a code, in quarters.
void e8p_point(const E8pTables& tables, unsigned code, int8_t point[8]);

enum class E8pResidual : uint8_t { kNone, kE8, kE8p };

// n weights: dst = scale / 4 * (point + inverse_ratio * residual point), each operation rounded.
// `codes` has a 16-bit code for each eight weights, `residual` one of 8 (kE8) or 16 bits (kE8p).
struct E8pRow {
  const uint8_t* codes;
  const uint8_t* residual;
  int64_t n;
  float scale;
  float inverse_ratio;
  E8pResidual kind;
};

struct E8pKernels {
  // The code of the nearest point to each of n vectors y [n, 8]; of equally near ones the lowest
  // row, and the shift by +1/4. Any numbers give some code.
  void (*nearest)(const E8pTables& tables, const float* y, int64_t n, uint16_t* codes);
  void (*nearest_e8)(const E8pTables& tables, const float* y, int64_t n, uint8_t* codes);
  void (*decode_row)(const E8pTables& tables, const E8pRow& row, float* dst);
};
const E8pKernels& e8p_kernels(Isa isa);
extern const E8pKernels e8p_kernels_ref, e8p_kernels_avx2, e8p_kernels_avx512;

}  // namespace quern
