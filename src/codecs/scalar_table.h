// SPDX-License-Identifier: Apache-2.0
// A codebook of at most 256 scalars: its search, and the decoders of rows that were coded with it.
//
// Codes of 5, 6 and 7 bits are kept as two streams (bit_stream.h), the low four bits and the rest,
// as TC-FPx cuts them: fields that divide a byte need no shifts across bytes. Others are one
// stream.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "codecs/bit_stream.h"
#include "kernels/kernels.h"

namespace quern {

class ScalarTable {
 public:
  // The level of each code, 2^bits of them in any order. One that is not finite, or the value of an
  // earlier code again, is never chosen.
  ScalarTable(int bits, std::span<const float> levels);

  int bits() const { return bits_; }
  const float* levels() const { return levels_.data(); }  // [256], zeros past 2^bits
  float level(unsigned code) const { return levels_[code]; }
  float lowest() const { return levels_[codes_[0]]; }
  float highest() const { return levels_[codes_[n_distinct_ - 1]]; }

  // The code of the level nearest to x; of two, the even code. NaN: the lowest.
  unsigned nearest(float x) const {
    unsigned rank = 0;
    for (unsigned step = 1u << (bits_ - 1); step != 0; step /= 2) {
      rank += x > borders_[rank + step - 1] ? step : 0;
    }
    return codes_[rank];
  }

 private:
  int bits_;
  unsigned n_distinct_ = 0;
  alignas(64) std::array<float, 256> levels_{};   // by code
  alignas(64) std::array<float, 256> borders_{};  // x above borders_[r]: a rank above r
  std::array<uint8_t, 256> codes_{};              // by rank among the distinct levels
};

// The streams of codes of `bits` bits.
struct CodeSplit {
  explicit CodeSplit(int bits) : low(bits > 4 && bits < 8 ? 4 : bits), high(bits - low) {}
  int low, high;  // bits of each; high may be 0
};

// One row: dst[i] = levels[code_i] * scale, plus shifts[i / group] if there are shifts, i < n.
// scale is scales[i / group], or of the pair there its second if the level's sign bit is set.
struct TableRow {
  const uint8_t* low;   // streams of n codes
  const uint8_t* high;  // null if CodeSplit(bits).high is 0
  const float* levels;  // [256]
  const float* scales;  // [groups, sides]
  const float* shifts;  // [groups] or null
  int64_t n;
  int64_t group;
  int bits;
  int sides;  // 1 or 2
};

void table_decode_row_ref(const TableRow& row, float* dst);
// Needs AVX-512 VBMI and group % 16 == 0 or group >= n.
void table_decode_row_avx512(const TableRow& row, float* dst);
// Needs AVX2, BMI2, and group % 16 == 0 or group >= n.
void table_decode_row_avx2(const TableRow& row, float* dst);
// The fastest that can.
void table_decode_row(const TableRow& row, float* dst);

}  // namespace quern
