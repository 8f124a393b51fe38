// SPDX-License-Identifier: Apache-2.0
// Nearest: 16 points at a time, each lane keeps its first best; the lowest index of the best lanes
// wins. Decoder: 16 codes are cut out of the stream by one vpermb and one variable shift, and one
// gather fetches the points of up to four bytes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "codecs/codebook.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

template <int kDim>
int64_t nearest_of(const CodebookPoints& points, const float* x, const float* weight) {
  __m512 least = _mm512_set1_ps(INFINITY);
  __m512i index = _mm512_setzero_si512();
  for (int64_t c = 0; c < points.stride; c += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int t = 0; t < kDim; ++t) {
      const __m512 point = _mm512_load_ps(points.values.data() + t * points.stride + c);
      const __m512 difference = _mm512_sub_ps(_mm512_set1_ps(x[t]), point);
      const __m512 term =
          _mm512_mul_ps(_mm512_set1_ps(weight[t]), _mm512_mul_ps(difference, difference));
      sum = t == 0 ? term : _mm512_add_ps(sum, term);
    }
    const int64_t left = points.k - c;
    const auto is_point = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
    const __mmask16 is_less = _mm512_mask_cmp_ps_mask(is_point, sum, least, _CMP_LT_OQ);
    least = _mm512_mask_mov_ps(least, is_less, sum);
    index = _mm512_mask_mov_epi32(index, is_less, _mm512_set1_epi32(static_cast<int>(c)));
  }
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 is_best =
      _mm512_cmp_ps_mask(least, _mm512_set1_ps(_mm512_reduce_min_ps(least)), _CMP_EQ_OQ);
  return _mm512_mask_reduce_min_epu32(is_best, _mm512_add_epi32(index, lane));
}

// Writes 16 values, or as many as are left.
void store(float* dst, int64_t left, __m128i bytes, __m512 scale) {
  if (left <= 0) return;
  const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
  _mm512_mask_storeu_ps(dst, mask,
                        _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))));
}

}  // namespace

int64_t codebook_nearest_avx512(const CodebookPoints& points, const float* x, const float* weight) {
  switch (points.dim) {
    case 1:
      return nearest_of<1>(points, x, weight);
    case 2:
      return nearest_of<2>(points, x, weight);
    default:
      return nearest_of<4>(points, x, weight);
  }
}

void codebook_decode_avx512(const CodebookRow& row, float* dst) {
  alignas(64) uint8_t spread[64];
  alignas(64) uint32_t shift[16];
  for (int i = 0; i < 16; ++i) {
    shift[i] = static_cast<uint32_t>(i * row.width % 8);
    for (int k = 0; k < 4; ++k) spread[4 * i + k] = static_cast<uint8_t>(i * row.width / 8 + k);
  }
  // A gather reads four bytes a point: the table of fewer dimensions is copied to where it may.
  alignas(64) int8_t padded[2 * 256 + 4];
  const int8_t* table = row.table;
  if (row.dim < 4) {
    std::memcpy(padded, row.table, static_cast<size_t>(row.dim) << row.width);
    table = padded;
  }
  const __m512i place = _mm512_load_si512(spread), shifts = _mm512_load_si512(shift);
  const __m512i mask = _mm512_set1_epi32((1 << row.width) - 1);
  const __m512i dim = _mm512_set1_epi32(row.dim == 4 ? 2 : row.dim - 1);  // as a shift
  const __m512 scale = _mm512_set1_ps(row.scale);
  int64_t byte = 0;
  for (int64_t j = 0; j < row.n; j += 16 * row.dim, byte += 2 * row.width) {
    const int64_t present = std::min<int64_t>(row.codes_bytes - byte, 2 * row.width);
    const __m256i bytes =
        _mm256_maskz_loadu_epi8(static_cast<__mmask32>((1ull << present) - 1), row.codes + byte);
    const __m512i codes = _mm512_and_si512(
        _mm512_srlv_epi32(_mm512_permutexvar_epi8(place, _mm512_castsi256_si512(bytes)), shifts),
        mask);
    const __m512i points = _mm512_i32gather_epi32(_mm512_sllv_epi32(codes, dim), table, 1);
    const int64_t left = row.n - j;
    if (row.dim == 1) {
      store(dst + j, left, _mm512_cvtepi32_epi8(points), scale);
    } else if (row.dim == 2) {
      const __m256i pairs = _mm512_cvtepi32_epi16(points);
      store(dst + j, left, _mm256_castsi256_si128(pairs), scale);
      store(dst + j + 16, left - 16, _mm256_extracti128_si256(pairs, 1), scale);
    } else {
      store(dst + j, left, _mm512_castsi512_si128(points), scale);
      store(dst + j + 16, left - 16, _mm512_extracti32x4_epi32(points, 1), scale);
      store(dst + j + 32, left - 32, _mm512_extracti32x4_epi32(points, 2), scale);
      store(dst + j + 48, left - 48, _mm512_extracti32x4_epi32(points, 3), scale);
    }
  }
}

}  // namespace quern
