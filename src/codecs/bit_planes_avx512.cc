// SPDX-License-Identifier: Apache-2.0
// Sixteen bits of a plane are a mask register: they put together the code of each lane, and one
// permute looks it up in the register that holds the levels of the group.
#include <cstring>

#include "codecs/bit_planes.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// Bits i to i + 15 of a stream of n bits; reads only bytes of the stream.
__mmask16 sixteen_bits(const uint8_t* stream, int64_t i, int64_t n) {
  if (n - i <= 8) return stream[i / 8];
  uint16_t bits;
  std::memcpy(&bits, stream + i / 8, 2);
  return bits;
}

template <int kPlanes>
void decode_row(const BitPlaneRow& row, float* dst) {
  constexpr int kLevels = 1 << kPlanes;
  const float* next_levels = row.levels;
  __m512 levels = _mm512_setzero_ps();
  int64_t group_end = 0;
  for (int64_t i = 0; i < row.n; i += 16) {
    if (i >= group_end) {
      levels = _mm512_maskz_loadu_ps((1u << kLevels) - 1, next_levels);
      next_levels += kLevels;
      group_end += row.group;
    }
    __m512i code = _mm512_maskz_set1_epi32(sixteen_bits(row.planes[0], i, row.n), 1);
    for (int p = 1; p < kPlanes; ++p) {
      code = _mm512_mask_or_epi32(code, sixteen_bits(row.planes[p], i, row.n), code,
                                  _mm512_set1_epi32(1 << p));
    }
    __m512 value = _mm512_permutexvar_ps(code, levels);
    const int64_t left = row.n - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
    if (row.factors != nullptr) {
      value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, row.factors + i));
    }
    _mm512_mask_storeu_ps(dst + i, mask, value);
  }
}

}  // namespace

void bit_planes_decode_row_avx512(const BitPlaneRow& row, float* dst) {
  if (row.n_planes == 1) return decode_row<1>(row, dst);
  if (row.n_planes == 2) return decode_row<2>(row, dst);
  decode_row<3>(row, dst);
}

}  // namespace quern
