// SPDX-License-Identifier: Apache-2.0
#include "kernels/intrinsics.h"
#include "kvcache/kv_levels.h"

namespace quern {

void look_up_rows_avx512(const uint8_t* codes, const float* tables, int64_t n_rows, int64_t n,
                         float* x) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const __m512 table = _mm512_loadu_ps(tables + 16 * r);
    for (int64_t j = 0; j < n; j += 16) {
      const auto* from = reinterpret_cast<const __m128i*>(codes + r * n + j);
      const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
      _mm512_storeu_ps(x + r * n + j, _mm512_permutexvar_ps(at, table));
    }
  }
}

}  // namespace quern
