// SPDX-License-Identifier: Apache-2.0
#include "codecs/scalar_table.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/float_types.h"
#include "base/random.h"
#include "codecs/stored_scalars.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_levels(int bits, Random& random) {
  std::vector<float> levels(size_t{1} << bits);
  for (float& level : levels) level = static_cast<float>(random.gaussian());
  return levels;
}

TEST(ScalarTable, NearestIsNearestOfAll) {
  Random random(1);
  for (int bits = 1; bits <= 8; ++bits) {
    std::vector<float> levels = random_levels(bits, random);
    levels[1] = levels[0];  // never chosen
    const ScalarTable table(bits, levels);
    for (int trial = 0; trial < 2000; ++trial) {
      const float x = 2 * static_cast<float>(random.gaussian());
      const unsigned code = table.nearest(x);
      EXPECT_NE(code, 1u);
      for (const float level : levels) {
        EXPECT_LE(std::abs(double{levels[code]} - x), std::abs(double{level} - x));
      }
    }
    EXPECT_EQ(table.level(table.nearest(kInfinity)), table.highest());
    EXPECT_EQ(table.level(table.nearest(-kInfinity)), table.lowest());
    EXPECT_EQ(table.level(table.nearest(kNan)), table.lowest());
  }
}

TEST(ScalarTable, LevelsThatAreNoNumbersAreNeverChosen) {
  const ScalarTable table(2, std::vector<float>{kNan, 1, kInfinity, -kInfinity});
  for (const float x : {-kInfinity, -5.0f, 0.0f, 1e30f, kInfinity, kNan}) {
    EXPECT_EQ(table.nearest(x), 1u);
  }
}

TEST(ScalarTable, TiesGoToTheEvenCode) {
  const ScalarTable table(2, std::vector<float>{0, 1, 2, 3});
  EXPECT_EQ(table.nearest(0.5f), 0u);
  EXPECT_EQ(table.nearest(1.5f), 2u);
  EXPECT_EQ(table.nearest(2.5f), 2u);
  EXPECT_EQ(table.nearest(std::nextafter(0.5f, 1.0f)), 1u);
  EXPECT_EQ(table.nearest(std::nextafter(1.5f, 1.0f)), 1u);
}

TEST(ScalarTable, EveryFastDecoderHasTheBitsOfTheReference) {
  Random random(2);
  for (int width = 1; width <= 10; ++width) {  // 9 and 10: 7 and 8 with levels of 16 bits
    const int bits = width > 8 ? width - 2 : width;
    const CodeSplit split(bits);
    std::vector<float> levels = random_levels(bits, random);
    for (float& level : levels) {
      if (width > 8) level = bf16_to_float(float_to_bf16(level));
    }
    const ScalarTable table(bits, levels);
    for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 129, 300}) {
      for (const int64_t group : {int64_t{16}, int64_t{48}, int64_t{64}, n}) {
        if (group % 16 != 0 && group < n) continue;
        for (const int sides : {1, 2}) {
          // Exact allocations, so that a sanitizer sees any read past a row.
          std::vector<uint8_t> low(static_cast<size_t>(stream_bytes(n, split.low)));
          std::vector<uint8_t> high(static_cast<size_t>(stream_bytes(n, split.high)));
          std::vector<float> shifts(static_cast<size_t>((n + group - 1) / group));
          std::vector<float> scales(shifts.size() * static_cast<size_t>(sides));
          for (uint8_t& byte : low) byte = static_cast<uint8_t>(random.next());
          for (uint8_t& byte : high) byte = static_cast<uint8_t>(random.next());
          for (float& x : shifts) x = static_cast<float>(random.gaussian());
          for (float& x : scales) x = static_cast<float>(random.gaussian());
          for (const bool has_shifts : {false, true}) {
            const TableRow row{low.data(),
                               split.high > 0 ? high.data() : nullptr,
                               table.levels(),
                               scales.data(),
                               has_shifts ? shifts.data() : nullptr,
                               n,
                               group,
                               bits,
                               sides};
            std::vector<float> expected(static_cast<size_t>(n)), got(expected);
            table_decode_row_ref(row, expected.data());
            if (host_has(Isa::kAvx512)) {
              table_decode_row_avx512(row, got.data());
              EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
            }
            if (host_has(Isa::kAvx2)) {
              table_decode_row_avx2(row, got.data());
              EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
            }
          }
        }
      }
    }
  }
}

TEST(ScalarTable, EveryFastSearchHasTheResultOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP() << "no AVX-512";
  Random random(3);
  for (int bits = 1; bits <= 8; ++bits) {
    const ScalarTable table(bits, random_levels(bits, random));
    for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100}) {
      std::vector<float> u(static_cast<size_t>(n)), weight(u);
      for (float& x : u) x = static_cast<float>(random.gaussian());
      for (float& x : weight) x = static_cast<float>(random.uniform());
      u[u.size() / 2] = u.size() % 2 == 0 ? 1e30f : 0;
      for (const float scale : {0.0f, 0.3f, -0.3f, 1e-30f}) {
        std::vector<uint8_t> expected(u.size()), got(u.size());
        for (const bool is_weighted : {false, true}) {
          const TableEntries entries{u.data(), is_weighted ? weight.data() : nullptr, n, scale};
          table_nearest_ref(table, entries, expected.data());
          table_nearest_avx512(table, entries, got.data());
          EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", scale " << scale;
          EXPECT_EQ(table_error_avx512(table, entries), table_error_ref(table, entries));
        }
      }
    }
  }
}

TEST(StoredScalars, DynamicMapIsThatOfDoubleQuantisation) {
  const std::vector<float> map = dynamic_map();
  ASSERT_EQ(map.size(), 256u);
  EXPECT_EQ(map.back(), 1);
  EXPECT_FLOAT_EQ(map.front(), -0.99296875f);
  EXPECT_EQ(std::count(map.begin(), map.end(), 0.0f), 1);
  for (size_t i = 1; i < map.size(); ++i) EXPECT_GT(map[i], map[i - 1]);
}

TEST(StoredScalars, PowersOfTwoRoundDownExactly) {
  const StoredScalars scales("scale", ScalarForm::kE8M0, ScalarUse::kScale, 0);
  for (int e = -126; e <= 127; ++e) {
    const double power = std::ldexp(1.0, e);
    const uint16_t stored = scales.round({}, 0, power);
    EXPECT_EQ(stored, e + 127);
    EXPECT_EQ(scales.value({}, 0, stored), static_cast<float>(power));
    EXPECT_EQ(scales.round({}, 0, std::nextafter(power, 0)), e + 126);
  }
  EXPECT_EQ(scales.value({}, 0, 0), 0x1p-127f) << "not zero";
  EXPECT_TRUE(std::isnan(scales.value({}, 0, 255)));
  EXPECT_EQ(scales.round({}, 0, 1e300), 254);
}

}  // namespace
}  // namespace quern
