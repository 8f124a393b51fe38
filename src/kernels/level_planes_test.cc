// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_planes.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"
#include "kernels/kernels.h"
#include "kernels/parity_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims[] = {16, 48, 64, 80, 128, 208, 256, 512};

// Rows of random codes, of any width each, side by side.
struct Rows {
  Rows(int64_t n_rows, int64_t n_codes, uint64_t seed) : n(n_codes) {
    Random random(seed);
    int64_t size = 0;
    for (int64_t r = 0; r < n_rows; ++r) {
      rows.push_back({static_cast<int>(random.below(9))});
      size += plane_row_bytes(rows.back().width, n);
      for (int64_t i = 0; i < n; ++i) {
        codes.push_back(static_cast<uint8_t>(random.below(uint64_t{1} << rows.back().width)));
      }
    }
    bytes.resize(static_cast<size_t>(size));
    std::byte* at = bytes.data();
    for (int64_t r = 0; r < n_rows; ++r) {
      PlaneRow& row = rows[static_cast<size_t>(r)];
      row.planes = at;
      put_plane_row(row.width, codes.data() + r * n, n, at);
      at += plane_row_bytes(row.width, n);
    }
  }
  PlaneRows view() const { return {rows.data(), static_cast<int64_t>(rows.size()), n}; }

  int64_t n;
  std::vector<PlaneRow> rows;
  std::vector<uint8_t> codes;    // [n_rows, n]
  std::vector<std::byte> bytes;  // no more than the planes
};

TEST(LevelPlanes, WhatIsPutIsUnpacked) {
  for (const int64_t n : kDims) {
    const Rows rows(32, n, 1);
    for (size_t r = 0; r < rows.rows.size(); ++r) {
      std::vector<uint8_t> got(static_cast<size_t>(n));
      unpack_plane_row(rows.rows[r], n, got.data());
      const auto want = rows.codes.begin() + static_cast<int64_t>(r) * n;
      EXPECT_TRUE(std::equal(got.begin(), got.end(), want)) << n << " " << rows.rows[r].width;
    }
  }
}

TEST(LevelPlanes, PlanesAreInOrderFromTheHighest) {
  uint8_t codes[16] = {};
  codes[0] = 4;
  codes[3] = 3;
  codes[9] = 1;
  std::vector<std::byte> planes(6);
  put_plane_row(3, codes, 16, planes.data());
  const std::byte want[] = {std::byte{1}, std::byte{0}, std::byte{8},
                            std::byte{0}, std::byte{8}, std::byte{2}};
  EXPECT_TRUE(std::equal(planes.begin(), planes.end(), want));
}

using Unpack = void (*)(const PlaneRows&, LevelBlock::Share, int, uint8_t*);

TEST(LevelPlanes, LevelsLieAboutTheZeroOfTheBlockAtEveryIsa) {
  std::vector<Unpack> all{unpack_plane_rows_ref, unpack_plane_rows};
  if (host_has(Isa::kAvx2)) all.push_back(unpack_plane_rows_avx2);
  if (host_has(Isa::kAvx512)) all.push_back(unpack_plane_rows_avx512);
  for (const int64_t n : kDims) {
    for (const int64_t n_rows : {16, 64}) {
      const Rows rows(n_rows, n, 2);
      for (const bool is_down : {true, false}) {
        const auto share = is_down ? LevelBlock::Share::kDown : LevelBlock::Share::kAcross;
        const int zero = is_down ? 128 : 0;
        for (const Unpack unpack : all) {
          testing::Guarded<uint8_t> levels(n_rows * n);
          unpack(rows.view(), share, zero, levels.data());
          EXPECT_TRUE(levels.guards_hold());
          for (int64_t r = 0; r < n_rows; ++r) {
            const int width = rows.rows[static_cast<size_t>(r)].width;
            const int middle = width == 0 ? 0 : 1 << (width - 1);
            for (int64_t i = 0; i < n; ++i) {
              const auto at = is_down ? level_place(n_rows, i, r) : level_place(n, r, i);
              const auto code = rows.codes[static_cast<size_t>(r * n + i)];
              ASSERT_EQ(levels[at], static_cast<uint8_t>(code - middle + zero)) << n << " " << r;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace quern
