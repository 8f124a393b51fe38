// SPDX-License-Identifier: Apache-2.0
// Levels stay in registers and are looked up by permutes: up to 64 as floats, more as bytes. The
// search for nearest levels gathers more than 64 borders from memory.
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

// 256 levels as one or two pairs of byte tables: 64 codes are looked up at once, byte by byte of
// their levels. kHalves is 1 where the lower half of every level is zero, as of 8-bit floats.
template <int kHalves>
class ByteLookup {
 public:
  explicit ByteLookup(const float* levels) {
    alignas(64) uint8_t bytes[256];
    for (int p = 0; p < kPlanes; ++p) {
      for (int i = 0; i < 256; i += 16) {
        const __m512i bits = _mm512_load_si512(levels + i);
        const __m512i byte = _mm512_srli_epi32(bits, static_cast<unsigned>(24 - 8 * p));
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes + i), _mm512_cvtepi32_epi8(byte));
      }
      for (int r = 0; r < 4; ++r) tables_[p][r] = _mm512_load_si512(bytes + 64 * r);
    }
  }

  void look_up(__m512i codes) {
    const __mmask64 is_upper = _mm512_movepi8_mask(codes);
    for (int p = 0; p < kPlanes; ++p) {
      const __m512i lower = _mm512_permutex2var_epi8(tables_[p][0], codes, tables_[p][1]);
      const __m512i upper = _mm512_permutex2var_epi8(tables_[p][2], codes, tables_[p][3]);
      found_[p] = _mm512_mask_mov_epi8(lower, is_upper, upper);
    }
  }

  // Of the last look-up.
  __m512 quarter(int q) const {
    __m512i bits = _mm512_setzero_si512();
    for (int p = 0; p < kPlanes; ++p) {
      const __m512i byte = quarter_avx512(found_[p], q);
      bits = _mm512_or_si512(bits, _mm512_slli_epi32(byte, static_cast<unsigned>(24 - 8 * p)));
    }
    return _mm512_castsi512_ps(bits);
  }

 private:
  static constexpr int kPlanes = 2 * kHalves;  // from the highest byte down
  __m512i tables_[kPlanes][4];
  __m512i found_[kPlanes];
};

// Up to 64 levels, with the same interface.
template <int kRegisters>
class SmallLookup {
 public:
  explicit SmallLookup(const float* levels) : lookup_(levels) {}
  void look_up(__m512i codes) { codes_ = codes; }
  __m512 quarter(int q) const { return lookup_(quarter_avx512(codes_, q)); }

 private:
  Lookup<kRegisters> lookup_;
  __m512i codes_;
};

bool has_lower_halves(const float* levels) {
  __m512i all = _mm512_setzero_si512();
  for (int i = 0; i < 256; i += 16) all = _mm512_or_si512(all, _mm512_load_si512(levels + i));
  return _mm512_test_epi32_mask(all, _mm512_set1_epi32(0xffff)) != 0;
}

template <class LevelLookup, bool kIsSplit>
void decode_row(const TableRow& row, float* dst) {
  const CodeSplit split(row.bits);
  LevelLookup lookup(row.levels);
  const CodeReaderAvx512 low(row.low, row.n, split.low);
  const CodeReaderAvx512 high(kIsSplit ? row.high : row.low, row.n, kIsSplit ? split.high : 1);
  int64_t group_end = 0, group_index = -1;
  __m512 scale = _mm512_setzero_ps(), negative = scale, shift = scale;
  for (int64_t i = 0; i < row.n; i += 64) {
    __m512i codes = low.read(i);
    if constexpr (kIsSplit) {
      codes = _mm512_or_si512(codes, _mm512_slli_epi16(high.read(i), 4));  // at most 7 bits
    }
    lookup.look_up(codes);
    for (int q = 0; q < 4 && i + 16 * q < row.n; ++q) {
      const int64_t at = i + 16 * q;
      if (at >= group_end) {
        ++group_index;
        group_end += row.group;
        scale = _mm512_set1_ps(row.scales[group_index * row.sides]);
        negative = _mm512_set1_ps(row.scales[group_index * row.sides + row.sides - 1]);
        if (row.shifts != nullptr) shift = _mm512_set1_ps(row.shifts[group_index]);
      }
      const __m512 level = lookup.quarter(q);
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

// The ranks of 16 numbers.
template <int kRegisters>
__m512i ranks_of(__m512 x, const Lookup<kRegisters>& borders, int n_levels) {
  __m512i rank = _mm512_setzero_si512();
  for (int step = n_levels / 2; step != 0; step /= 2) {
    const __m512 border = borders(_mm512_add_epi32(rank, _mm512_set1_epi32(step - 1)));
    const __mmask16 is_above = _mm512_cmp_ps_mask(x, border, _CMP_GT_OQ);
    rank = _mm512_mask_add_epi32(rank, is_above, rank, _mm512_set1_epi32(step));
  }
  return rank;
}

// Calls visit(first, mask, u, ranks) for each 16 of the entries.
template <int kRegisters, class Visit>
void for_ranks(const ScalarTable& table, const TableEntries& entries, const Visit& visit) {
  const Lookup<kRegisters> borders(table.borders());
  const __m512 scale = _mm512_set1_ps(entries.scale);
  for (int64_t i = 0; i < entries.n; i += 16) {
    const int64_t n = entries.n - i < 16 ? entries.n - i : 16;
    const auto mask = static_cast<__mmask16>((1u << n) - 1);
    const __m512 u = _mm512_maskz_loadu_ps(mask, entries.u + i);
    const __m512 x = entries.scale == 0 ? _mm512_setzero_ps() : _mm512_div_ps(u, scale);
    visit(i, mask, u, ranks_of(x, borders, 1 << table.bits()));
  }
}

template <int kRegisters>
void nearest(const ScalarTable& table, const TableEntries& entries, uint8_t* codes) {
  for_ranks<kRegisters>(table, entries, [&](int64_t i, __mmask16 mask, __m512, __m512i ranks) {
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, mask, ranks);
  });
  for (int64_t i = 0; i < entries.n; ++i) {
    codes[i] = static_cast<uint8_t>(table.code_of_rank(codes[i]));
  }
}

template <int kRegisters>
double squared_error(const ScalarTable& table, const TableEntries& entries) {
  const Lookup<kRegisters> levels(table.ranked_levels());
  const __m512 scale = _mm512_set1_ps(entries.scale);
  __m512d low = _mm512_setzero_pd(), high = low;
  for_ranks<kRegisters>(table, entries, [&](int64_t i, __mmask16 mask, __m512 u, __m512i ranks) {
    const __m512 product = _mm512_mul_ps(levels(ranks), scale);
    const __m512 distance = _mm512_maskz_sub_ps(mask, u, product);
    const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(distance));
    const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(distance, 1));
    __m512d a_squared = _mm512_mul_pd(a, a), b_squared = _mm512_mul_pd(b, b);
    if (entries.weight != nullptr) {
      const __m512 weight = _mm512_maskz_loadu_ps(mask, entries.weight + i);
      a_squared = _mm512_mul_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(weight)), a_squared);
      b_squared = _mm512_mul_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(weight, 1)), b_squared);
    }
    low = _mm512_add_pd(low, a_squared);
    high = _mm512_add_pd(high, b_squared);
  });
  alignas(64) double lanes[8];
  _mm512_store_pd(lanes, _mm512_add_pd(low, high));
  for (int width = 4; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace

void table_decode_row_avx512(const TableRow& row, float* dst) {
  if (row.bits <= 4) return decode_row<SmallLookup<1>, false>(row, dst);
  if (row.bits == 5) return decode_row<SmallLookup<2>, true>(row, dst);
  if (row.bits == 6) return decode_row<SmallLookup<4>, true>(row, dst);
  const bool is_split = row.bits == 7;
  if (has_lower_halves(row.levels)) {
    return is_split ? decode_row<ByteLookup<2>, true>(row, dst)
                    : decode_row<ByteLookup<2>, false>(row, dst);
  }
  return is_split ? decode_row<ByteLookup<1>, true>(row, dst)
                  : decode_row<ByteLookup<1>, false>(row, dst);
}

void table_nearest_avx512(const ScalarTable& table, const TableEntries& entries, uint8_t* codes) {
  if (table.bits() <= 4) return nearest<1>(table, entries, codes);
  if (table.bits() == 5) return nearest<2>(table, entries, codes);
  if (table.bits() == 6) return nearest<4>(table, entries, codes);
  nearest<0>(table, entries, codes);
}

double table_error_avx512(const ScalarTable& table, const TableEntries& entries) {
  if (table.bits() <= 4) return squared_error<1>(table, entries);
  if (table.bits() == 5) return squared_error<2>(table, entries);
  if (table.bits() == 6) return squared_error<4>(table, entries);
  return squared_error<0>(table, entries);
}

}  // namespace quern
