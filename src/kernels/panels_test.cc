// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/parity_testing.h"
#include "tensor/matrix.h"

namespace quern {

void fill_panels_emulated(KernelTable& table);  // AMX's kernels over those of AVX-512

namespace {

using testing::fast_isas;
using testing::fill;
using testing::Fill;
using testing::Guarded;
using testing::same_bits;

constexpr int64_t kGroups[] = {64, 128, 256};                             // of both operands
constexpr int64_t kDotGroups[] = {16, 48, 64, 128, 192, 256, 512, 1024};  // of a product
constexpr int64_t kWidths[] = {1, 5, 63, 64, 65, 130, 256, 500, 1024, 2250};

// Random panels and activations of any bytes.
struct Case {
  int64_t n_rows, n_x, n_groups, group;
  AlignedVector<uint8_t> levels;
  AlignedVector<float> scales;
  AlignedVector<int8_t> x;
  std::vector<float> x_scales;
  std::vector<int32_t> offsets;

  Case(int64_t rows, int64_t n, int64_t groups, int64_t group_cols, uint64_t seed)
      : n_rows(rows), n_x(n), n_groups(groups), group(group_cols) {
    Random random(seed);
    const int64_t n_panels = (rows + kPanelRows - 1) / kPanelRows;
    for (int64_t i = 0; i < n_panels * groups * group * kPanelRows; ++i) {
      levels.push_back(static_cast<uint8_t>(random.next()));
    }
    for (int64_t i = 0; i < n_panels * groups * kPanelRows; ++i) {
      scales.push_back(static_cast<float>(random.gaussian()));
    }
    for (int64_t i = 0; i < n * groups; ++i) {
      int32_t sum = 0;
      for (int64_t j = 0; j < group; ++j) {
        const int level = static_cast<int>(random.below(255)) - 127;
        x.push_back(static_cast<int8_t>(level));
        sum += level;
      }
      x_scales.push_back(static_cast<float>(random.gaussian()));
      offsets.push_back(-128 * sum);
    }
  }
  Int8Rows rows() const {
    return {x.data(), x_scales.data(), offsets.data(), n_x, n_groups, group, n_groups * group};
  }
  // Groups [first, first + n) of every panel.
  Panels panels(int64_t first, int64_t n) const {
    return {levels.data() + first * group * kPanelRows,
            scales.data() + first * kPanelRows,
            n_groups * group * kPanelRows,
            n_groups * kPanelRows,
            n_rows,
            first,
            n};
  }
};

TEST(Panels, DotIsTheSumOverLevels) {
  const Case c(37, 3, 3, 128, 1);
  std::vector<float> y(3 * 37);
  kernels(Isa::kRef).panel_dot(c.panels(0, 3), c.rows(), y.data(), 37);
  for (int64_t i = 0; i < c.n_x; ++i) {
    for (int64_t row = 0; row < c.n_rows; ++row) {
      double sum = 0, size = 0;
      for (int64_t j = 0; j < c.n_groups * c.group; ++j) {
        const int64_t g = j / c.group, p = row / 16, r = row % 16;
        const size_t panel = static_cast<size_t>(p * c.n_groups * c.group * 16);
        const double w = c.levels[panel + static_cast<size_t>((j / 4 * 16 + r) * 4 + j % 4)] - 128;
        const double x = c.x[static_cast<size_t>(i * c.n_groups * c.group + j)];
        const double term = w * c.scales[static_cast<size_t>((p * c.n_groups + g) * 16 + r)] * x *
                            c.x_scales[static_cast<size_t>(i * c.n_groups + g)];
        sum += term;
        size += std::abs(term);
      }
      EXPECT_NEAR(y[static_cast<size_t>(i * 37 + row)], sum, 1e-6 * size);
    }
  }
}

struct NamedTable {
  std::string name;
  KernelTable table;
};

std::vector<NamedTable> fast_tables() {
  std::vector<NamedTable> tables;
  for (const Isa isa : fast_isas()) tables.push_back({std::string(isa_name(isa)), kernels(isa)});
  if (host_has(Isa::kAvx512)) {
    tables.push_back({"amx, emulated", kernels(Isa::kAvx512)});
    fill_panels_emulated(tables.back().table);
  }
  return tables;
}

TEST(Panels, EveryIsaGivesTheSameDots) {
  for (const auto& [name, table] : fast_tables()) {
    for (const int64_t group : kDotGroups) {
      for (const int64_t n_rows : {1, 15, 16, 33, 64, 100}) {
        for (const int64_t n_x : {1, 2, 3, 4, 6, 7, 19, 150}) {
          const Case c(n_rows, n_x, 3, group, static_cast<uint64_t>(n_rows * n_x));
          const int64_t ld = n_rows + 3;
          Guarded<float> expected(n_x * ld), got(n_x * ld);
          for (int64_t i = 0; i < n_x * ld; ++i) {
            expected[i] = got[i] = i % ld < n_rows ? std::nanf("") : static_cast<float>(i);
          }
          kernels(Isa::kRef).panel_dot(c.panels(0, 3), c.rows(), expected.data(), ld);
          table.panel_dot(c.panels(0, 3), c.rows(), got.data(), ld);
          for (int64_t i = 0; i < n_x * ld; ++i) {
            ASSERT_TRUE(same_bits(expected[i], got[i])) << name << " " << n_rows << " " << n_x;
          }
          EXPECT_TRUE(got.guards_hold());
        }
      }
    }
  }
}

TEST(Panels, GroupsMayComeInPieces) {
  for (const auto& [name, table] : fast_tables()) {
    for (const int64_t group : {64, 256}) {
      const Case c(48, 53, 4, group, 7);
      std::vector<float> whole(53 * 48), pieces(53 * 48);
      table.panel_dot(c.panels(0, 4), c.rows(), whole.data(), 48);
      table.panel_dot(c.panels(0, 1), c.rows(), pieces.data(), 48);
      table.panel_dot(c.panels(1, 3), c.rows(), pieces.data(), 48);
      EXPECT_EQ(whole, pieces) << name;
    }
  }
}

// The largest levels of one sign everywhere: nothing saturates or wraps.
TEST(Panels, ExtremesAreExact) {
  for (const int level : {-127, 127}) {
    for (const int code : {0, 255}) {
      Case c(16, 1, 1, 1024, 1);
      std::fill(c.levels.begin(), c.levels.end(), static_cast<uint8_t>(code));
      std::fill(c.x.begin(), c.x.end(), static_cast<int8_t>(level));
      c.offsets[0] = -128 * 1024 * level;
      std::fill(c.scales.begin(), c.scales.end(), 1.0f);
      c.x_scales[0] = 1;
      for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
        std::vector<float> y(16);
        kernels(isa).panel_dot(c.panels(0, 1), c.rows(), y.data(), 16);
        for (const float value : y) {
          EXPECT_EQ(value, static_cast<float>(1024 * level * (code - 128))) << isa_name(isa);
        }
      }
    }
  }
}

TEST(Panels, RowsAreRoundedToTheNearestLevel) {
  for (const int64_t group : kGroups) {
    for (const int64_t k : kWidths) {
      Guarded<float> x(k);
      fill(x.data(), k, Fill::kGaussian, static_cast<uint64_t>(k));
      const int64_t n_groups = (k + group - 1) / group;
      Guarded<int8_t> levels(n_groups * group);
      Guarded<float> scales(n_groups);
      Guarded<int32_t> offsets(n_groups);
      kernels().quantize_row(x.data(), k, group, levels.data(), scales.data(), offsets.data());
      EXPECT_TRUE(levels.guards_hold() && scales.guards_hold() && offsets.guards_hold());
      for (int64_t g = 0; g < n_groups; ++g) {
        int sum = 0, largest = 0;
        for (int64_t j = g * group; j < (g + 1) * group; ++j) {
          const float value = j < k ? x[j] : 0;
          EXPECT_NEAR(levels[j] * scales[g], value, 0.501f * scales[g]);
          sum += levels[j];
          largest = std::max(largest, std::abs(levels[j]));
        }
        EXPECT_EQ(largest, 127);
        EXPECT_EQ(offsets[g], -128 * sum);
      }
    }
  }
}

TEST(Panels, EveryIsaRoundsAlike) {
  for (const Isa isa : fast_isas()) {
    for (const Fill kind : {Fill::kGaussian, Fill::kSpecial}) {
      for (const int64_t group : kGroups) {
        for (const int64_t k : kWidths) {
          constexpr int64_t kRows = 13;
          Guarded<float> w(kRows * k);
          fill(w.data(), w.size(), kind, static_cast<uint64_t>(k));
          const int64_t n_groups = (k + group - 1) / group, n = n_groups * group;
          Guarded<uint8_t> levels[2] = {Guarded<uint8_t>(16 * n), Guarded<uint8_t>(16 * n)};
          Guarded<float> scales[2] = {Guarded<float>(16 * n_groups), Guarded<float>(16 * n_groups)};
          Guarded<int8_t> row[2] = {Guarded<int8_t>(n), Guarded<int8_t>(n)};
          Guarded<float> row_scales[2] = {Guarded<float>(n_groups), Guarded<float>(n_groups)};
          Guarded<int32_t> offsets[2] = {Guarded<int32_t>(n_groups), Guarded<int32_t>(n_groups)};
          for (int t = 0; t < 2; ++t) {
            const KernelTable& table = kernels(t == 0 ? Isa::kRef : isa);
            table.quantize_panel(w.data(), kRows, k, group, levels[t].data(), scales[t].data());
            table.quantize_row(w.data(), k, group, row[t].data(), row_scales[t].data(),
                               offsets[t].data());
          }
          for (int64_t i = 0; i < 16 * n; ++i) ASSERT_EQ(levels[0][i], levels[1][i]);
          for (int64_t i = 0; i < 16 * n_groups; ++i) {
            ASSERT_TRUE(same_bits(scales[0][i], scales[1][i]));
          }
          for (int64_t j = 0; j < n; ++j) {
            ASSERT_EQ(row[0][j], row[1][j]);
            ASSERT_EQ(row[0][j], levels[0][j / 4 * 64 + j % 4] - 128) << "a panel's row is a row";
          }
          for (int64_t g = 0; g < n_groups; ++g) {
            ASSERT_TRUE(same_bits(row_scales[0][g], row_scales[1][g]));
            ASSERT_EQ(offsets[0][g], offsets[1][g]);
          }
          EXPECT_TRUE(levels[1].guards_hold() && scales[1].guards_hold() && row[1].guards_hold());
        }
      }
    }
  }
}

TEST(Panels, GroupsThatAreNoNumbersGiveNoNumbers) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> x(64, 1.0f);
    x[40] = bad;
    std::vector<int8_t> levels(64);
    float scale = 0;
    int32_t offset = 1;
    kernels().quantize_row(x.data(), 64, 64, levels.data(), &scale, &offset);
    EXPECT_TRUE(std::isnan(scale));
    EXPECT_EQ(levels, std::vector<int8_t>(64));
    EXPECT_EQ(offset, 0);
  }
}

}  // namespace
}  // namespace quern
