// SPDX-License-Identifier: Apache-2.0
// 32 blocks at once: the table of rows, two bits a coordinate, stays in eight registers, where
// vpermi2w looks 32 rows up; vpmultishiftqb cuts the fields of a row apart. Sign bytes, once
// parities are folded in, are the masks of the negations as they stand. What is left over goes by
// eight blocks, whose rows are gathered.
#include "codecs/e8p_search.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

struct Lanes {
  typedef float Floats __attribute__((vector_size(64)));
  typedef int32_t Ints __attribute__((vector_size(64)));
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static void offer(Floats candidate, Ints candidate_row, Floats& score, Ints& row) {
    const __mmask16 is_better = _mm512_cmp_ps_mask(candidate, score, _CMP_GT_OQ);
    score = _mm512_mask_mov_ps(score, is_better, candidate);
    row = reinterpret_cast<Ints>(_mm512_mask_mov_epi32(reinterpret_cast<__m512i>(row), is_better,
                                                       reinterpret_cast<__m512i>(candidate_row)));
  }
};

// The points of eight codes, in quarters.
inline __m512i eight_points(const E8pTables& t, __m128i codes) {
  const __m512i wide = _mm512_cvtepu16_epi64(codes);
  __m512i points = _mm512_i64gather_epi64(_mm512_srli_epi64(wide, 8),
                                          reinterpret_cast<const long long*>(t.points), 8);
  const __m128i low_bytes =
      _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1);
  const auto signs = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_shuffle_epi8(codes, low_bytes)));
  uint64_t odd = signs ^ (signs >> 4);
  odd ^= odd >> 2;
  odd = (odd ^ (odd >> 1)) & 0x0101010101010101u;
  points = _mm512_mask_sub_epi8(points, signs ^ odd, _mm512_setzero_si512(), points);
  const __m512i shift = _mm512_mask_mov_epi8(_mm512_set1_epi8(1), odd * 255, _mm512_set1_epi8(-1));
  return _mm512_add_epi8(points, shift);
}

// What points_of_32 keeps in registers.
struct Lookup {
  __m512i rows[8];     // packed rows, 32 a register
  __m512i spread[4];   // each 64-bit lane gets the word of its block
  __m512i fields;      // shifts of the eight fields of a word
  __m512i magnitudes;  // of a field, in quarters; the byte's other bits are not looked at

  explicit Lookup(const E8pTables& t) {
    alignas(64) uint16_t words[32];
    alignas(64) uint8_t bytes[64];
    for (int i = 0; i < 8; ++i) rows[i] = _mm512_load_si512(t.packed + 32 * i);
    for (int q = 0; q < 4; ++q) {
      for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(8 * q + i / 4);
      spread[q] = _mm512_load_si512(words);
    }
    for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(2 * (i % 8));
    fields = _mm512_load_si512(bytes);
    for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(4 * (i % 4) + 2);
    magnitudes = _mm512_load_si512(bytes);
  }

  __m512i row_words(__m512i codes) const {
    const __m512i row = _mm512_srli_epi16(codes, 8);
    const __mmask32 bit6 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1 << 14));
    const __mmask32 bit7 = _mm512_movepi16_mask(codes);
    const __m512i a = _mm512_permutex2var_epi16(rows[0], row, rows[1]);
    const __m512i b = _mm512_permutex2var_epi16(rows[2], row, rows[3]);
    const __m512i c = _mm512_permutex2var_epi16(rows[4], row, rows[5]);
    const __m512i d = _mm512_permutex2var_epi16(rows[6], row, rows[7]);
    return _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(a, bit6, b), bit7,
                                 _mm512_mask_mov_epi16(c, bit6, d));
  }
};

inline __m512i xor_shifted(__m512i x, int n) {
  return _mm512_xor_si512(x, _mm512_srli_epi16(x, static_cast<unsigned>(n)));
}

// The points of 32 codes, in quarters, eight a register.
inline void points_of_32(const Lookup& lookup, const uint8_t* codes, __m512i points[4]) {
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i code = _mm512_loadu_si512(codes);
  const __m512i words = lookup.row_words(code);
  const __m512i signs = _mm512_and_si512(code, _mm512_set1_epi16(255));
  // Parities: of the low bits of the fields, which is that of the row's sum; of the signs.
  const __m512i low = _mm512_and_si512(words, _mm512_set1_epi16(0x5555));
  const __m512i row_odd = xor_shifted(xor_shifted(xor_shifted(low, 8), 4), 2);
  const __m512i odd = _mm512_and_si512(xor_shifted(xor_shifted(xor_shifted(signs, 4), 2), 1), one);
  const __m512i negated = _mm512_xor_si512(_mm512_xor_si512(signs, odd),
                                           _mm512_slli_epi16(_mm512_and_si512(row_odd, one), 7));
  alignas(32) uint64_t negations[4], minus[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(negations), _mm512_cvtepi16_epi8(negated));
  _mm256_store_si256(reinterpret_cast<__m256i*>(minus),
                     _mm512_cvtepi16_epi8(_mm512_sub_epi16(_mm512_setzero_si512(), odd)));
  for (int q = 0; q < 4; ++q) {
    const __m512i spread = _mm512_permutexvar_epi16(lookup.spread[q], words);
    const __m512i fields = _mm512_multishift_epi64_epi8(lookup.fields, spread);
    __m512i point = _mm512_permutexvar_epi8(fields, lookup.magnitudes);
    point = _mm512_mask_sub_epi8(point, negations[q], _mm512_setzero_si512(), point);
    const __m512i shift = _mm512_mask_mov_epi8(_mm512_set1_epi8(1), minus[q], _mm512_set1_epi8(-1));
    points[q] = _mm512_add_epi8(point, shift);
  }
}

inline __m128i eight_codes(const uint8_t* codes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
}

template <int kQuarter>
inline __m512 sixteen(__m512i points) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(points, kQuarter)));
}

template <int kQuarter, bool kHasResidual>
inline void store_quarter(__m512i points, __m512i residual, __m512 ratio, __m512 scale,
                          float* dst) {
  __m512 value = sixteen<kQuarter>(points);
  if (kHasResidual) value = _mm512_add_ps(value, _mm512_mul_ps(ratio, sixteen<kQuarter>(residual)));
  _mm512_storeu_ps(dst + 16 * kQuarter, _mm512_mul_ps(scale, value));
}

template <bool kHasResidual>
inline void store_64(__m512i points, __m512i residual, __m512 ratio, __m512 scale, float* dst) {
  store_quarter<0, kHasResidual>(points, residual, ratio, scale, dst);
  store_quarter<1, kHasResidual>(points, residual, ratio, scale, dst);
  store_quarter<2, kHasResidual>(points, residual, ratio, scale, dst);
  store_quarter<3, kHasResidual>(points, residual, ratio, scale, dst);
}

inline __m512i eight_of_e8(const E8pTables& t, const uint8_t* codes) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm512_i64gather_epi64(_mm512_cvtepu8_epi64(bytes),
                                reinterpret_cast<const long long*>(t.e8), 8);
}

template <E8pResidual kKind>
void decode(const E8pTables& t, const E8pRow& row, float* dst) {
  constexpr bool kHasResidual = kKind != E8pResidual::kNone;
  const __m512 scale = _mm512_set1_ps(0.25f * row.scale), ratio = _mm512_set1_ps(row.inverse_ratio);
  int64_t j = 0;
  if (row.n >= 256) {
    const Lookup lookup(t);
    for (; j + 256 <= row.n; j += 256, dst += 256) {
      __m512i points[4], residual[4] = {};
      points_of_32(lookup, row.codes + j / 4, points);
      if (kKind == E8pResidual::kE8p) points_of_32(lookup, row.residual + j / 4, residual);
      for (int q = 0; q < 4; ++q) {
        if (kKind == E8pResidual::kE8) residual[q] = eight_of_e8(t, row.residual + j / 8 + 8 * q);
        store_64<kHasResidual>(points[q], residual[q], ratio, scale, dst + 64 * q);
      }
    }
  }
  for (; j + 64 <= row.n; j += 64, dst += 64) {
    const __m512i points = eight_points(t, eight_codes(row.codes + j / 4));
    __m512i residual = _mm512_setzero_si512();
    if (kKind == E8pResidual::kE8) residual = eight_of_e8(t, row.residual + j / 8);
    if (kKind == E8pResidual::kE8p) residual = eight_points(t, eight_codes(row.residual + j / 4));
    store_64<kHasResidual>(points, residual, ratio, scale, dst);
  }
  if (j == row.n) return;
  E8pRow tail = row;
  tail.codes += j / 4;
  if (kHasResidual) tail.residual += j / (kKind == E8pResidual::kE8 ? 8 : 4);
  tail.n -= j;
  e8p_kernels_ref.decode_row(t, tail, dst);
}

void decode_row(const E8pTables& t, const E8pRow& row, float* dst) {
  switch (row.kind) {
    case E8pResidual::kNone:
      return decode<E8pResidual::kNone>(t, row, dst);
    case E8pResidual::kE8:
      return decode<E8pResidual::kE8>(t, row, dst);
    case E8pResidual::kE8p:
      return decode<E8pResidual::kE8p>(t, row, dst);
  }
}

}  // namespace

const E8pKernels e8p_kernels_avx512 = {E8pSearch<Lanes>::nearest, E8pSearch<Lanes>::nearest_e8,
                                       decode_row};

}  // namespace quern
