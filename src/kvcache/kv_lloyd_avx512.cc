// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_codes_avx512.h"
#include "kvcache/kv_lloyd.h"

namespace quern {
namespace {

template <int kBits>
void decode(const KvLloydShape& s, const float* levels, const std::byte* page, float* x) {
  const std::byte* scales = page + s.code_bytes();
  const std::byte* high = page + s.size() / 4;
  constexpr auto kLevels = static_cast<__mmask16>((uint32_t{1} << (1 << kBits)) - 1);
  const __m512 table = _mm512_maskz_loadu_ps(kLevels, levels);
  const int64_t cols = s.is_turned ? kKeyBlock : s.d_head;
  int64_t i = 0, j = 0;  // of the next sixteen
  for (int64_t line = 0; line < s.size() / 64; ++line) {
    const KvLine codes = kv_line_codes<kBits>(page, high, line);
    for (const __m512i sixteen : codes.part) {
      const __m512 scale = s.is_turned ? kv_halves(scales + 2 * j) : kv_half(scales + 2 * i);
      _mm512_storeu_ps(x, _mm512_mul_ps(_mm512_permutexvar_ps(sixteen, table), scale));
      x += 16;
      j += 16;
      if (j == cols) {
        j = 0;
        ++i;
      }
    }
  }
}

}  // namespace

void decode_kv_lloyd_avx512(const KvLloydShape& shape, const float* levels, const std::byte* page,
                            float* x) {
  switch (shape.bits) {
    case 1:
      return decode<1>(shape, levels, page, x);
    case 2:
      return decode<2>(shape, levels, page, x);
    case 3:
      return decode<3>(shape, levels, page, x);
    default:
      return decode<4>(shape, levels, page, x);
  }
}

}  // namespace quern
