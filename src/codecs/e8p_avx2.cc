// SPDX-License-Identifier: Apache-2.0
// Signs and shifts of the eight quarters of a block by bytes.
#include <cstring>

#include "codecs/e8p_search.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

struct Lanes {
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static void offer(Floats candidate, Ints candidate_row, Floats& score, Ints& row) {
    const __m256 is_better = _mm256_cmp_ps(candidate, score, _CMP_GT_OQ);
    score = _mm256_blendv_ps(score, candidate, is_better);
    row = reinterpret_cast<Ints>(_mm256_blendv_epi8(reinterpret_cast<__m256i>(row),
                                                    reinterpret_cast<__m256i>(candidate_row),
                                                    _mm256_castps_si256(is_better)));
  }
};

// The quarters of one block as 64 bits, bytes computed side by side.
inline uint64_t point_bytes(const E8pTables& t, const uint8_t* codes) {
  uint16_t code;
  std::memcpy(&code, codes, 2);
  int64_t row;
  std::memcpy(&row, t.points[code >> 8], 8);
  const unsigned signs = code & 255u;
  const unsigned odd = static_cast<unsigned>(__builtin_parity(signs));
  const uint64_t negated = _pdep_u64(signs ^ odd, 0x0101010101010101u) * 255;
  const __m128i mask = _mm_cvtsi64_si128(static_cast<long long>(negated));
  // x -> (x ^ -1) + 1 where negated; then the shift.
  const __m128i turned = _mm_sub_epi8(_mm_xor_si128(_mm_cvtsi64_si128(row), mask), mask);
  const __m128i shifted = _mm_add_epi8(turned, _mm_set1_epi8(odd != 0 ? -1 : 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(shifted));
}

inline __m256 eight(uint64_t bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes))));
}

void decode_row(const E8pTables& t, const E8pRow& row, float* dst) {
  const __m256 scale = _mm256_set1_ps(0.25f * row.scale), ratio = _mm256_set1_ps(row.inverse_ratio);
  int64_t j = 0;
  for (; j + 8 <= row.n; j += 8) {
    __m256 value = eight(point_bytes(t, row.codes + j / 4));
    if (row.kind != E8pResidual::kNone) {
      uint64_t residual;
      if (row.kind == E8pResidual::kE8) {
        std::memcpy(&residual, t.e8[row.residual[j / 8]], 8);
      } else {
        residual = point_bytes(t, row.residual + j / 4);
      }
      value = _mm256_add_ps(value, _mm256_mul_ps(ratio, eight(residual)));
    }
    _mm256_storeu_ps(dst + j, _mm256_mul_ps(scale, value));
  }
  if (j == row.n) return;
  E8pRow tail = row;
  tail.codes += j / 4;
  if (row.kind != E8pResidual::kNone) tail.residual += j / (row.kind == E8pResidual::kE8 ? 8 : 4);
  tail.n -= j;
  e8p_kernels_ref.decode_row(t, tail, dst + j);
}

}  // namespace

const E8pKernels e8p_kernels_avx2 = {E8pSearch<Lanes>::nearest, E8pSearch<Lanes>::nearest_e8,
                                     decode_row};

}  // namespace quern
