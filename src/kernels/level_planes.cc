// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_planes.h"

#include <cstring>

#include "kernels/kernels.h"

namespace quern {
namespace {

// The bits of a byte as bytes of 0 or 1, the lowest first.
uint64_t spread(std::byte byte) {
  const uint64_t bits =
      (std::to_integer<uint64_t>(byte) * 0x0101010101010101u) & 0x8040201008040201u;
  return ((bits + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

}  // namespace

void put_plane_row(int width, const uint8_t* codes, int64_t n, std::byte* planes) {
  for (int bit = width - 1; bit >= 0; --bit, planes += n / 8) {
    for (int64_t i = 0; i < n; ++i) {
      planes[i / 8] |= static_cast<std::byte>((codes[i] >> bit & 1) << (i % 8));
    }
  }
}

void unpack_plane_row(const PlaneRow& row, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n / 8; ++i) {
    uint64_t eight = 0;
    for (int plane = 0; plane < row.width; ++plane) {
      eight = 2 * eight + spread(row.planes[plane * (n / 8) + i]);
    }
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

void unpack_plane_rows_ref(const PlaneRows& from, LevelBlock::Share share, int zero,
                           uint8_t* levels) {
  for (int64_t r = 0; r < from.n_rows; ++r) {
    const PlaneRow& row = from.rows[r];
    uint8_t codes[kMostLevelRows] = {};
    unpack_plane_row(row, from.n, codes);
    const int offset = zero - (1 << row.width) / 2;
    for (int64_t i = 0; i < from.n; ++i) {
      const int64_t at = share == LevelBlock::Share::kDown ? level_place(from.n_rows, i, r)
                                                           : level_place(from.n, r, i);
      levels[at] = static_cast<uint8_t>(codes[i] + offset);
    }
  }
}

void unpack_plane_rows(const PlaneRows& from, LevelBlock::Share share, int zero, uint8_t* levels) {
  const Isa isa = kernels().isa;
  const auto unpack = isa == Isa::kAvx512 ? unpack_plane_rows_avx512
                      : isa == Isa::kAvx2 ? unpack_plane_rows_avx2
                                          : unpack_plane_rows_ref;
  unpack(from, share, zero, levels);
}

}  // namespace quern
