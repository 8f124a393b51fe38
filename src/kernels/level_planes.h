// SPDX-License-Identifier: Apache-2.0
// Rows of codes that differ in width: n codes of w bits, w from 0 to 8, as w planes of one bit from
// the highest down, in each the bits of all n (bit i % 8 of byte i / 8). n is a multiple of 16, at
// most kMostLevelRows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/level_block.h"

namespace quern {

inline constexpr int64_t plane_row_bytes(int width, int64_t n) { return width * (n / 8); }

struct PlaneRow {
  int width = 0;
  const std::byte* planes = nullptr;
};

// Adds n codes to bytes that are zero there.
void put_plane_row(int width, const uint8_t* codes, int64_t n, std::byte* planes);
void unpack_plane_row(const PlaneRow& row, int64_t n, uint8_t* codes);

// A multiple of 16 rows of n codes each.
struct PlaneRows {
  const PlaneRow* rows = nullptr;  // [n_rows]
  int64_t n_rows = 0, n = 0;
};

// Writes the levels of a block. PlaneRows are its rows where it shares scales kAcross, its columns
// where kDown. A code of w bits becomes the level code - 2^(w - 1) + zero, one of none zero, with
// `zero` that of the block: all widths lie about the same.
void unpack_plane_rows(const PlaneRows& from, LevelBlock::Share share, int zero, uint8_t* levels);
void unpack_plane_rows_ref(const PlaneRows& from, LevelBlock::Share share, int zero,
                           uint8_t* levels);
void unpack_plane_rows_avx2(const PlaneRows& from, LevelBlock::Share share, int zero,
                            uint8_t* levels);
void unpack_plane_rows_avx512(const PlaneRows& from, LevelBlock::Share share, int zero,
                              uint8_t* levels);

}  // namespace quern
