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
  unsigned nearest(float x) const { return codes_[rank_of(x)]; }

  // Distinct levels by rank, [256], and the search among them: x is above borders()[r] if its rank
  // is above r; infinite from the last rank on.
  const float* ranked_levels() const { return ranked_levels_.data(); }
  const float* borders() const { return borders_.data(); }
  unsigned code_of_rank(unsigned rank) const { return codes_[rank]; }
  unsigned rank_of(float x) const {
    unsigned rank = 0;
    for (unsigned step = 1u << (bits_ - 1); step != 0; step /= 2) {
      rank += x > borders_[rank + step - 1] ? step : 0;
    }
    return rank;
  }

 private:
  int bits_;
  unsigned n_distinct_ = 0;
  alignas(64) std::array<float, 256> levels_{};         // by code
  alignas(64) std::array<float, 256> ranked_levels_{};  // by rank among the distinct levels
  alignas(64) std::array<float, 256> borders_{};
  std::array<uint8_t, 256> codes_{};  // by rank
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

// Many entries that share a scale, at the nearest level to u / scale, of a scale of 0 to 0.
struct TableEntries {
  const float* u;       // [n]
  const float* weight;  // [n] or null: all 1
  int64_t n;
  float scale;
};

// codes[i] = the code of entry i.
void table_nearest_ref(const ScalarTable& table, const TableEntries& entries, uint8_t* codes);
// Needs AVX-512.
void table_nearest_avx512(const ScalarTable& table, const TableEntries& entries, uint8_t* codes);
void table_nearest(const ScalarTable& table, const TableEntries& entries, uint8_t* codes);

// sum_i weight_i (u_i - level_i * scale)^2, product and difference in float, the rest in double in
// 16 lanes as in kernels.h, unfused.
double table_error_ref(const ScalarTable& table, const TableEntries& entries);
double table_error_avx512(const ScalarTable& table, const TableEntries& entries);
double table_error(const ScalarTable& table, const TableEntries& entries);

}  // namespace quern
