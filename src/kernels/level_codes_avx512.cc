// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_codes.h"
#include "kernels/level_lines_avx512.h"

namespace quern {

void unpack_level_codes_avx512(const LevelCodes& from, uint8_t* bytes) {
  with_level_bits(from.bits, [&](auto bits) {
    const LevelLines<decltype(bits)::value> lines(from);
    for (int64_t i = 0; i < from.n / 64; ++i) _mm512_storeu_si512(bytes + 64 * i, lines[i]);
  });
}

}  // namespace quern
