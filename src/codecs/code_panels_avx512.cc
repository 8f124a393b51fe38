// SPDX-License-Identifier: Apache-2.0
// 64 columns of a row are cut out of its stream by a byte shuffle and a multishift, and turned with
// those of 15 other rows.
#include <algorithm>

#include "codecs/bit_stream.h"
#include "codecs/code_panels.h"
#include "codecs/panel_bytes_avx512.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// Fields of one width, masked.
class Fields {
 public:
  explicit Fields(int bits) : bits_(bits) {
    alignas(64) uint8_t bytes[64], shifts[64];
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<uint8_t>(i / 8 * bits + i % 8);
      shifts[i] = static_cast<uint8_t>(i % 8 * bits);
    }
    bytes_ = _mm512_load_si512(bytes);
    shifts_ = _mm512_load_si512(shifts);
    mask_ = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
  }
  // Those of columns j to j + 63 of a stream of n_bytes.
  __m512i read(const uint8_t* stream, int64_t n_bytes, int64_t j) const {
    const int64_t at = j / 8 * bits_, left = n_bytes - at;
    const __m512i raw = left >= 64 ? _mm512_loadu_si512(stream + at)
                                   : _mm512_maskz_loadu_epi8((1ull << left) - 1, stream + at);
    const __m512i spread = _mm512_permutexvar_epi8(bytes_, raw);
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts_, spread), mask_);
  }

 private:
  int64_t bits_;
  __m512i bytes_, shifts_, mask_;
};

}  // namespace

void code_panel_avx512(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel) {
  const Fields low(codes.low_bits), high(std::max(1, codes.high_bits));
  const int64_t low_bytes = stream_bytes(codes.n_in, codes.low_bits);
  const int64_t high_bytes = stream_bytes(codes.n_in, codes.high_bits);
  const int64_t n_quads = ceil_div<int64_t>(codes.n_in, 16) * 4;
  for (int64_t q = 0; q < n_quads; q += 16) {
    __m512i rows[16];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t i = row + std::min(r, n_rows - 1);
      const uint8_t* bytes = codes.low + i * low_bytes;
      prefetch_next_panel(bytes + 4 * q * codes.low_bits / 8, low_bytes);
      rows[r] = low.read(bytes, low_bytes, 4 * q);
      if (codes.high_bits > 0) {
        const __m512i above = high.read(codes.high + i * high_bytes, high_bytes, 4 * q);
        rows[r] = _mm512_or_si512(rows[r],
                                  _mm512_slli_epi16(above, static_cast<unsigned>(codes.low_bits)));
      }
    }
    transpose_16x16(rows);
    const int64_t n = std::min<int64_t>(16, n_quads - q);
    for (int64_t k = 0; k < n; ++k) _mm512_storeu_si512(panel + (q + k) * 64, rows[k]);
  }
}

}  // namespace quern
