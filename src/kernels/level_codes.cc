// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_codes.h"

#include "kernels/kernels.h"

namespace quern {

void put_level_code(int bits, int64_t n, int64_t at, int code, std::byte* codes) {
  const int64_t line = at / 64, j = at % 64;
  const auto add = [](std::byte& byte, int64_t value, int64_t shift) {
    byte |= static_cast<std::byte>(value << shift);
  };
  switch (bits) {
    case 8:
      return add(codes[at], code, 0);
    case 4:
      return add(codes[line * 32 + j / 32 * 16 + j % 16], code, j / 16 % 2 * 4);
    case 1:
      return add(codes[line * 8 + j / 8], code, j % 8);
    default:
      add(codes[line * 16 + j % 16], code & 3, j / 16 * 2);
      if (bits == 3) add(codes[n / 4 + line * 8 + j / 8], code >> 2, j % 8);
  }
}

int level_code_at(int bits, int64_t n, const std::byte* codes, int64_t at) {
  const int64_t line = at / 64, j = at % 64;
  const auto get = [&](int64_t byte, int64_t shift, int mask) {
    return std::to_integer<int>(codes[byte] >> shift) & mask;
  };
  switch (bits) {
    case 8:
      return get(at, 0, 255);
    case 4:
      return get(line * 32 + j / 32 * 16 + j % 16, j / 16 % 2 * 4, 15);
    case 1:
      return get(line * 8 + j / 8, j % 8, 1);
    default: {
      const int low = get(line * 16 + j % 16, j / 16 * 2, 3);
      if (bits == 2) return low;
      return low + 4 * get(n / 4 + line * 8 + j / 8, j % 8, 1);
    }
  }
}

void unpack_level_codes_ref(const LevelCodes& from, uint8_t* bytes) {
  for (int64_t i = 0; i < from.n; ++i) bytes[i] = static_cast<uint8_t>(from.at(i));
}

void unpack_level_codes(const LevelCodes& codes, uint8_t* bytes) {
  const Isa isa = kernels().isa;
  (isa == Isa::kAvx512 ? unpack_level_codes_avx512
   : isa == Isa::kAvx2 ? unpack_level_codes_avx2
                       : unpack_level_codes_ref)(codes, bytes);
}

}  // namespace quern
