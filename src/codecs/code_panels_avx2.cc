// SPDX-License-Identifier: Apache-2.0
// 16 columns of four rows at a time: pdep makes bytes of the fields, and four rows are turned.
#include <algorithm>

#include "base/checked.h"
#include "codecs/bit_stream_avx2.h"
#include "codecs/code_panels.h"
#include "kernels/panels.h"

namespace quern {

void code_panel_avx2(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel) {
  const int64_t low_bytes = stream_bytes(codes.n_in, codes.low_bits);
  const int64_t high_bytes = stream_bytes(codes.n_in, codes.high_bits);
  for (int64_t j = 0; j < codes.n_in; j += 16, panel += 16 * kPanelRows) {
    for (int64_t r = 0; r < n_rows; r += 4) {
      __m128i rows[4];
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = row + std::min(r + k, n_rows - 1);
        rows[k] = sixteen_codes_avx2(codes.low + i * low_bytes, j, codes.n_in, codes.low_bits);
        if (codes.high_bits > 0) {
          const __m128i high =
              sixteen_codes_avx2(codes.high + i * high_bytes, j, codes.n_in, codes.high_bits);
          rows[k] = _mm_or_si128(rows[k], _mm_slli_epi16(high, codes.low_bits));
        }
      }
      const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]);
      const __m128i b = _mm_unpackhi_epi32(rows[0], rows[1]);
      const __m128i c = _mm_unpacklo_epi32(rows[2], rows[3]);
      const __m128i d = _mm_unpackhi_epi32(rows[2], rows[3]);
      const __m128i quads[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c),
                                _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
      for (int64_t q = 0; q < 4; ++q) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(panel + (q * kPanelRows + r) * 4), quads[q]);
      }
    }
  }
}

}  // namespace quern
