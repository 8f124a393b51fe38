// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "kvcache/kv_codes_avx512.h"
#include "kvcache/kv_int.h"

namespace quern {
namespace {

// Halves as floats; the calling thread keeps the memory.
const float* floats_of(const std::byte* from, int64_t n, std::vector<float>& to) {
  to.resize(static_cast<size_t>(n + 15));
  for (int64_t i = 0; i < n; i += 16) {
    const auto rest = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    const __m256i bits = _mm256_maskz_loadu_epi16(rest, from + 2 * i);
    _mm512_storeu_ps(to.data() + i, _mm512_cvtph_ps(bits));
  }
  return to.data();
}

template <int kBits>
void decode(const KvIntShape& s, const std::byte* page, float* x) {
  thread_local std::vector<float> scale_floats, least_floats;
  const std::byte* stored = page + s.code_bytes();
  const float* scales = floats_of(stored, s.n_params(), scale_floats);
  const float* least = floats_of(stored + 2 * s.n_params(), s.n_params(), least_floats);
  const std::byte* high = page + s.rows * s.cols / 4;
  const int64_t n_lines = s.rows * s.cols / 64;
  if (s.is_along_rows) {  // as groups divide rows, they follow one another through all of the page
    int64_t left = s.group / 16;
    for (int64_t line = 0; line < n_lines; ++line) {
      const KvLine codes = kv_line_codes<kBits>(page, high, line);
      for (const __m512i sixteen : codes.part) {
        _mm512_storeu_ps(x, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sixteen), _mm512_set1_ps(*scales),
                                            _mm512_set1_ps(*least)));
        x += 16;
        if (--left > 0) continue;
        left = s.group / 16;
        ++scales;
        ++least;
      }
    }
    return;
  }
  int64_t row = 0, col = 0;  // of the next sixteen, row within a group
  for (int64_t line = 0; line < n_lines; ++line) {
    const KvLine codes = kv_line_codes<kBits>(page, high, line);
    for (const __m512i sixteen : codes.part) {
      _mm512_storeu_ps(x,
                       _mm512_fmadd_ps(_mm512_cvtepi32_ps(sixteen), _mm512_loadu_ps(scales + col),
                                       _mm512_loadu_ps(least + col)));
      x += 16;
      col += 16;
      if (col < s.cols) continue;
      col = 0;
      if (++row < s.group) continue;
      row = 0;
      scales += s.cols;
      least += s.cols;
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
