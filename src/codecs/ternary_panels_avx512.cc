// SPDX-License-Identifier: Apache-2.0
// 64 bytes of 16 rows are turned as 32-bit lanes, so that a lane has 20 columns of its row, five
// times the four bytes of a panel. A table gives the first four digits of each byte in two bits
// each, of which multishifts cut what a vector wants; another gives the fifth. That of byte b is
// column 5 b + 4, which is byte b of the vector b + 1: it only has to be blended in.
#include <algorithm>

#include "codecs/byte_table_avx512.h"
#include "codecs/panel_bytes_avx512.h"
#include "codecs/ternary.h"
#include "kernels/panels.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

struct Digits {
  alignas(64) uint8_t first[256];  // digit k in bits 2 k and 2 k + 1
  alignas(64) uint8_t fifth[256];
};

constexpr Digits make_digits() {
  Digits digits{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned packed = 0, rest = byte;
    for (unsigned k = 0; k < 4; ++k, rest = 3 * rest & 255) packed |= (3 * rest >> 8) << 2 * k;
    digits.first[byte] = static_cast<uint8_t>(packed);
    digits.fifth[byte] = static_cast<uint8_t>(3 * rest >> 8);
  }
  return digits;
}
constexpr Digits kDigits = make_digits();

// Where the digits of vector v begin in a 64-bit lane of two rows; a fifth digit's does not matter.
constexpr PanelBytes shifts_of(int v) {
  return panel_bytes([=](int i) {
    const int column = 4 * v + i % 4;
    return i % 8 / 4 * 32 + column / 5 * 8 + column % 5 * 2;
  });
}
constexpr PanelBytes kShifts[5] = {shifts_of(0), shifts_of(1), shifts_of(2), shifts_of(3),
                                   shifts_of(4)};

constexpr PanelBytes kLevels = panel_bytes([](int i) { return kPanelZero - 1 + i % 4; });

}  // namespace

void trits_panel_avx512(const TritPanel& rows, uint8_t* levels) {
  const ByteTable<8> first_digits(kDigits.first), fifth_digits(kDigits.fifth);
  const int64_t n_quads = (rows.n_cols + 3) / 4, n_bytes = (rows.n_cols + 4) / 5;
  for (int64_t b = 0; b < n_bytes; b += 64) {
    const __mmask64 present = ~uint64_t{0} >> (64 - std::min<int64_t>(64, n_bytes - b));
    __m512i bytes[16];
    for (int64_t r = 0; r < 16; ++r) {
      const uint8_t* from = rows.codes + std::min(r, rows.n_rows - 1) * rows.stride + b;
      prefetch_next_panel(from, rows.stride);
      bytes[r] = _mm512_maskz_loadu_epi8(present, from);
    }
    transpose_16x16(bytes);
    const int64_t quad = b * 5 / 4, n = std::min<int64_t>(80, n_quads - quad);
    for (int64_t lane = 0; 5 * lane < n; ++lane) {
      const __m512i first = first_digits(bytes[lane]), fifth = fifth_digits(bytes[lane]);
      for (int64_t v = 0; v < 5 && 5 * lane + v < n; ++v) {
        __m512i digit = _mm512_multishift_epi64_epi8(kShifts[v].load(), first);
        if (v > 0) {
          digit = _mm512_mask_mov_epi8(digit, 0x1111111111111111u << (v - 1), fifth);
        }
        _mm512_storeu_si512(levels + (quad + 5 * lane + v) * 64,
                            _mm512_permutexvar_epi8(digit, kLevels.load()));
      }
    }
  }
}

}  // namespace quern
