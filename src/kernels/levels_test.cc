// SPDX-License-Identifier: Apache-2.0
// Levels on a given grid: the definition, and the same bits from every ISA.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/parity_testing.h"

namespace quern {
namespace {

using testing::fast_isas;
using testing::fill;
using testing::Fill;
using testing::Guarded;
using testing::kSizes;
using testing::same_bits;

TEST(Range, IsTheLeastAndTheLargestAndHoldsZero) {
  for (const int64_t n : kSizes) {
    Guarded<float> x(n, 3);
    fill(x.data(), n, Fill::kGaussian, static_cast<uint64_t>(n));
    float low = 1, high = -1;
    kernels(Isa::kRef).range(x.data(), n, &low, &high);
    EXPECT_EQ(low, std::min(0.0f, *std::min_element(x.data(), x.data() + n)));
    EXPECT_EQ(high, std::max(0.0f, *std::max_element(x.data(), x.data() + n)));
  }
}

TEST(Range, IsNoNumberWhereAnyValueIsNone) {
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const int64_t at : {0, 7, 20, 36}) {
        std::vector<float> x(37, 1.0f);
        x[static_cast<size_t>(at)] = bad;
        float low = 0, high = 0;
        kernels(isa).range(x.data(), 37, &low, &high);
        EXPECT_TRUE(std::isnan(low) && std::isnan(high)) << isa_name(isa) << " " << bad;
      }
    }
  }
}

TEST(Range, EveryIsaAgrees) {
  for (const Isa isa : fast_isas()) {
    for (const Fill kind : {Fill::kGaussian, Fill::kSpecial}) {
      for (const int64_t n : kSizes) {
        Guarded<float> x(n, n % 5);
        fill(x.data(), n, kind, static_cast<uint64_t>(n));
        float expected[2], got[2];
        kernels(Isa::kRef).range(x.data(), n, &expected[0], &expected[1]);
        kernels(isa).range(x.data(), n, &got[0], &got[1]);
        ASSERT_TRUE(same_bits(expected[0], got[0]) && same_bits(expected[1], got[1]))
            << isa_name(isa) << " " << n;
      }
    }
    const float zeros[3] = {-0.0f, 0.0f, -0.0f};
    float low = 1, high = 1;
    kernels(isa).range(zeros, 3, &low, &high);
    EXPECT_FALSE(std::signbit(low) || std::signbit(high));
  }
}

struct Levels {
  Guarded<int8_t> levels;
  Guarded<int32_t> offsets;
  Levels(int64_t k, int64_t group)
      : levels((k + group - 1) / group * group), offsets((k + group - 1) / group) {}
};

TEST(RoundLevels, AreTheNearestOnTheGrid) {
  for (const int64_t k : kSizes) {
    Guarded<float> x(k);
    fill(x.data(), k, Fill::kGaussian, static_cast<uint64_t>(k));
    Levels out(k, 32);
    kernels(Isa::kRef).round_levels(x.data(), k, 32, 5.0f, -7, 6, out.levels.data(),
                                    out.offsets.data());
    EXPECT_TRUE(out.levels.guards_hold() && out.offsets.guards_hold());
    int32_t sum = 0;
    for (int64_t j = 0; j < out.levels.size(); ++j) {
      if (j % 32 == 0) sum = 0;
      const float exact = j < k ? x[j] * 5.0f : 0;
      const float nearest = std::nearbyint(std::min(std::max(exact, -7.0f), 6.0f));
      EXPECT_EQ(out.levels[j], static_cast<int>(nearest));
      sum += out.levels[j];
      EXPECT_EQ(j % 32 == 31 ? out.offsets[j / 32] : -128 * sum, -128 * sum);
    }
  }
}

TEST(RoundLevels, EveryIsaAgrees) {
  struct Grid {
    float to_levels;
    int low, high;
  };
  // The last overflows: such values are held at the ends.
  const Grid grids[] = {{40, -127, 127}, {3, -7, 7}, {2.5f, 0, 15}, {0, -7, 7}, {1e38f, -30, 97}};
  for (const Isa isa : fast_isas()) {
    for (const Grid& grid : grids) {
      for (const int64_t group : {16, 48, 64, 128}) {
        for (const int64_t k : kSizes) {
          Guarded<float> x(k, k % 3);
          fill(x.data(), k, Fill::kGaussian, static_cast<uint64_t>(k));
          for (int64_t j = 0; j < k; j += 5) x[j] = std::nearbyint(x[j]) + 0.5f;  // ties
          Levels expected(k, group), got(k, group);
          kernels(Isa::kRef).round_levels(x.data(), k, group, grid.to_levels, grid.low, grid.high,
                                          expected.levels.data(), expected.offsets.data());
          kernels(isa).round_levels(x.data(), k, group, grid.to_levels, grid.low, grid.high,
                                    got.levels.data(), got.offsets.data());
          for (int64_t j = 0; j < got.levels.size(); ++j) {
            ASSERT_EQ(expected.levels[j], got.levels[j]) << isa_name(isa) << " " << k << " " << j;
          }
          for (int64_t g = 0; g < got.offsets.size(); ++g) {
            ASSERT_EQ(expected.offsets[g], got.offsets[g]);
          }
          EXPECT_TRUE(got.levels.guards_hold() && got.offsets.guards_hold());
        }
      }
    }
  }
}

// One definition of 8 bits in groups: that of quantize_row.
TEST(RoundLevels, OnTheGridOfALargestValueEqualQuantizeRow) {
  constexpr int64_t kWidth = 200, kGroup = 64;
  std::vector<float> x(kWidth);
  fill(x.data(), kWidth, Fill::kGaussian, 9);
  Levels row(kWidth, kGroup), grid(kWidth, kGroup);
  std::vector<float> scales(4);
  kernels().quantize_row(x.data(), kWidth, kGroup, row.levels.data(), scales.data(),
                         row.offsets.data());
  for (int64_t g = 0; g < 4; ++g) {
    const int64_t n = std::min(kGroup, kWidth - g * kGroup);
    float low = 0, high = 0;
    kernels().range(&x[static_cast<size_t>(g * kGroup)], n, &low, &high);
    kernels().round_levels(&x[static_cast<size_t>(g * kGroup)], n, kGroup,
                           127 / std::max(-low, high), -127, 127, grid.levels.data() + g * kGroup,
                           grid.offsets.data() + g);
    EXPECT_EQ(row.offsets[g], grid.offsets[g]);
  }
  for (int64_t j = 0; j < 4 * kGroup; ++j) EXPECT_EQ(row.levels[j], grid.levels[j]);
}

}  // namespace
}  // namespace quern
