// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/random.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(LevelCodes, WhatIsPutIsUnpacked) {
  Random random(1);
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (const int64_t n : {64, 192, 1024}) {
      std::vector<std::byte> codes(static_cast<size_t>(level_code_bytes(bits, n)));
      std::vector<uint8_t> want, got(static_cast<size_t>(n));
      for (int64_t at = 0; at < n; ++at) {
        want.push_back(static_cast<uint8_t>(random.below(uint64_t{1} << bits)));
        put_level_code(bits, n, at, want.back(), codes.data());
      }
      unpack_level_codes({bits, n, codes.data()}, got.data());
      EXPECT_EQ(got, want) << bits << " " << n;
    }
  }
}

// Random bytes, as from a file.
TEST(LevelCodes, EveryIsaUnpacksAlike) {
  Random random(2);
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (const int64_t n : {64, 320, 4096}) {
      for (const bool has_table : {false, true}) {
        if (bits == 8 && has_table) continue;
        std::vector<std::byte> codes(static_cast<size_t>(level_code_bytes(bits, n)));
        for (std::byte& byte : codes) byte = static_cast<std::byte>(random.next());
        std::vector<uint8_t> table(size_t{1} << bits), want(static_cast<size_t>(n)), got(want);
        for (uint8_t& value : table) value = static_cast<uint8_t>(random.next());
        const LevelCodes from{bits, n, codes.data(), has_table ? table.data() : nullptr};
        unpack_level_codes_ref(from, want.data());
        using Unpack = void (*)(const LevelCodes&, uint8_t*);
        for (const auto& [isa, unpack] :
             {std::pair<Isa, Unpack>(Isa::kAvx2, unpack_level_codes_avx2),
              std::pair<Isa, Unpack>(Isa::kAvx512, unpack_level_codes_avx512)}) {
          if (!host_has(isa)) continue;
          std::fill(got.begin(), got.end(), uint8_t{0});
          unpack(from, got.data());
          EXPECT_EQ(got, want) << isa_name(isa) << " " << bits << " " << n << " " << has_table;
        }
      }
    }
  }
}

}  // namespace
}  // namespace quern
