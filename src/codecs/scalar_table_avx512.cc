// SPDX-License-Identifier: Apache-2.0
// Up to 64 levels stay in registers and are looked up by permutes; more are gathered from memory.
#include "codecs/bit_stream_avx512.h"
#include "codecs/scalar_table.h"

namespace quern {
namespace {

template <int kRegisters>  // of 16 levels; 0: in memory
class Lookup {
 public:
  explicit Lookup(const float* levels) : memory_(levels) {
    for (int i = 0; i < kRegisters; ++i) levels_[i] = _mm512_load_ps(levels + 16 * i);
  }

  __m512 operator()(__m512i codes) const {
    if constexpr (kRegisters == 1) {
      return _mm512_permutexvar_ps(codes, levels_[0]);
    } else if constexpr (kRegisters == 2) {
      return _mm512_permutex2var_ps(levels_[0], codes, levels_[1]);
    } else if constexpr (kRegisters == 4) {
      const __mmask16 is_upper = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(32));
      const __m512 lower = _mm512_permutex2var_ps(levels_[0], codes, levels_[1]);
      return _mm512_mask_mov_ps(lower, is_upper,
                                _mm512_permutex2var_ps(levels_[2], codes, levels_[3]));
    } else {
      return _mm512_i32gather_ps(codes, memory_, 4);
    }
  }

 private:
  const float* memory_;
  __m512 levels_[kRegisters == 0 ? 1 : kRegisters];
};

template <int kRegisters, bool kIsSplit>
void decode_row(const TableRow& row, float* dst) {
  const CodeSplit split(row.bits);
  const Lookup<kRegisters> lookup(row.levels);
  const CodeReaderAvx512 low(row.low, row.n, split.low);
  const CodeReaderAvx512 high(kIsSplit ? row.high : row.low, row.n, kIsSplit ? split.high : 1);
  int64_t group_end = 0, group_index = -1;
  __m512 scale = _mm512_setzero_ps(), negative = scale, shift = scale;
  for (int64_t i = 0; i < row.n; i += 64) {
    __m512i codes = low.read(i);
    if constexpr (kIsSplit) {
      codes = _mm512_or_si512(codes, _mm512_slli_epi16(high.read(i), 4));  // at most 7 bits
    }
    for (int q = 0; q < 4 && i + 16 * q < row.n; ++q) {
      const int64_t at = i + 16 * q;
      if (at >= group_end) {
        ++group_index;
        group_end += row.group;
        scale = _mm512_set1_ps(row.scales[group_index * row.sides]);
        negative = _mm512_set1_ps(row.scales[group_index * row.sides + row.sides - 1]);
        if (row.shifts != nullptr) shift = _mm512_set1_ps(row.shifts[group_index]);
      }
      const __m512 level = lookup(quarter_avx512(codes, q));
      const __mmask16 is_minus = _mm512_movepi32_mask(_mm512_castps_si512(level));
      __m512 result = _mm512_mul_ps(level, _mm512_mask_mov_ps(scale, is_minus, negative));
      if (row.shifts != nullptr) result = _mm512_add_ps(result, shift);
      const int64_t n = row.n - at;
      if (n >= 16) {
        _mm512_storeu_ps(dst + at, result);
      } else {
        _mm512_mask_storeu_ps(dst + at, static_cast<__mmask16>((1u << n) - 1), result);
      }
    }
  }
}

}  // namespace

void table_decode_row_avx512(const TableRow& row, float* dst) {
  switch (row.bits) {
    case 5:
      return decode_row<2, true>(row, dst);
    case 6:
      return decode_row<4, true>(row, dst);
    case 7:
      return decode_row<0, true>(row, dst);
    case 8:
      return decode_row<0, false>(row, dst);
    default:
      return decode_row<1, false>(row, dst);
  }
}

}  // namespace quern
