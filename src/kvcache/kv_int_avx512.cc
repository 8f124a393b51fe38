// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_codes_avx512.h"
#include "kvcache/kv_int.h"

namespace quern {
namespace {

template <int kBits>
void decode(const KvIntShape& s, const std::byte* page, float* x) {
  const std::byte* scales = page + s.code_bytes();
  const std::byte* least = scales + 2 * s.n_params();
  const std::byte* high = page + s.rows * s.cols / 4;
  const int64_t per_row = s.cols / s.group;
  int64_t i = 0, j = 0;  // of the next sixteen
  for (int64_t line = 0; line < s.rows * s.cols / 64; ++line) {
    const KvLine codes = kv_line_codes<kBits>(page, high, line);
    for (const __m512i sixteen : codes.part) {
      __m512 scale, base;
      if (s.is_along_rows) {
        const int64_t p = i * per_row + j / s.group;
        scale = kv_half(scales + 2 * p);
        base = kv_half(least + 2 * p);
      } else {
        const int64_t p = i / s.group * s.cols + j;
        scale = kv_halves(scales + 2 * p);
        base = kv_halves(least + 2 * p);
      }
      _mm512_storeu_ps(x, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sixteen), scale, base));
      x += 16;
      j += 16;
      if (j == s.cols) {
        j = 0;
        ++i;
      }
    }
  }
}

}  // namespace

void decode_kv_int_avx512(const KvIntShape& shape, const std::byte* page, float* x) {
  switch (shape.bits) {
    case 1:
      return decode<1>(shape, page, x);
    case 2:
      return decode<2>(shape, page, x);
    case 3:
      return decode<3>(shape, page, x);
    case 4:
      return decode<4>(shape, page, x);
    default:
      return decode<8>(shape, page, x);
  }
}

}  // namespace quern
