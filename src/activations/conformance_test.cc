// SPDX-License-Identifier: Apache-2.0
// What every quantizer of activations promises, on the examples of every row of the list.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "activations/act_quantizer.h"
#include "gaussian.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

constexpr int64_t kWidths[] = {1, 5, 16, 63, 64, 65, 200, 256, 1000, 1500};
constexpr int64_t kPanelGroups[] = {16, 32, 64};

class Acts : public ::testing::TestWithParam<std::string_view> {
 protected:
  std::unique_ptr<ActQuantizer> act_ = *make_act(GetParam());

  // Ranges of some rows; empty unless static.
  std::vector<float> ranges(MatrixView<const float> rows) const {
    std::vector<float> low(static_cast<size_t>(rows.cols)), high = low;
    for (int64_t i = 0; i < rows.rows; ++i) {
      for (int64_t j = 0; j < rows.cols; ++j) {
        const auto at = static_cast<size_t>(j);
        low[at] = std::min(low[at], rows(i, j));
        high[at] = std::max(high[at], rows(i, j));
      }
    }
    return act_->ranges(low, high);
  }
};

TEST_P(Acts, PrintAndParseBack) {
  EXPECT_EQ(act_->spec(), GetParam());
  EXPECT_EQ((*make_act(act_->spec()))->spec(), act_->spec());
}

TEST_P(Acts, ValuesAreScaledLevels) {
  if (act_->form() != ActForm::kLevels) return;
  for (const int64_t n : kWidths) {
    const Matrix<float> x = gaussian(3, n, static_cast<uint64_t>(n));
    const std::vector<float> ranges = this->ranges(x.view());
    EXPECT_TRUE(check_ranges(*act_, n, ranges));
    for (const int64_t group : kPanelGroups) {
      if (!act_->check(n, group)) continue;
      const int64_t n_groups = (n + group - 1) / group;
      std::vector<int8_t> levels(static_cast<size_t>(n_groups * group));
      std::vector<float> scales(static_cast<size_t>(n_groups)), values(static_cast<size_t>(n));
      std::vector<int32_t> offsets(static_cast<size_t>(n_groups));
      act_->levels(x.row(0), n, ranges, {group, levels.data(), scales.data(), offsets.data()});
      act_->values(x.row(0), n, ranges, values.data());
      for (int64_t j = 0; j < n_groups * group; ++j) {
        const int level = levels[static_cast<size_t>(j)];
        EXPECT_LE(std::abs(level), 127);
        if (j >= n) {
          EXPECT_EQ(level, 0);
        } else {
          EXPECT_EQ(values[static_cast<size_t>(j)],
                    scales[static_cast<size_t>(j / group)] * static_cast<float>(level));
        }
      }
      for (int64_t g = 0; g < n_groups; ++g) {
        int sum = 0;
        for (int64_t j = g * group; j < (g + 1) * group; ++j) sum += levels[static_cast<size_t>(j)];
        EXPECT_EQ(offsets[static_cast<size_t>(g)], -128 * sum);
      }
    }
  }
}

// Powers of two pass through to the bit.
TEST_P(Acts, ScaleWithTheirInput) {
  for (const int64_t n : kWidths) {
    Matrix<float> x = gaussian(4, n, static_cast<uint64_t>(n));
    std::vector<float> ranges = this->ranges(x.view());
    std::vector<float> one(static_cast<size_t>(n)), four(one);
    act_->values(x.row(1), n, ranges, one.data());
    for (int64_t j = 0; j < n; ++j) x(1, j) *= 4;
    for (float& range : ranges) range *= 4;
    act_->values(x.row(1), n, ranges, four.data());
    for (size_t j = 0; j < one.size(); ++j) EXPECT_EQ(four[j], 4 * one[j]) << n;
  }
}

TEST_P(Acts, ValuesMayOverwriteTheirInput) {
  const Matrix<float> x = gaussian(1, 300, 5);
  std::vector<float> in_place(x.row(0), x.row(0) + 300), apart(300);
  const std::vector<float> ranges = this->ranges(x.view());
  act_->values(x.row(0), 300, ranges, apart.data());
  act_->values(in_place.data(), 300, ranges, in_place.data());
  EXPECT_EQ(in_place, apart);
}

TEST_P(Acts, ZerosStayAndWhatIsNoNumberIsNotHidden) {
  const Matrix<float> x = gaussian(2, 96, 6);
  const std::vector<float> ranges = this->ranges(x.view());
  std::vector<float> row(96, 0.0f), values(96);
  act_->values(row.data(), 96, ranges, values.data());
  for (const float value : values) EXPECT_EQ(value, 0);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    std::copy_n(x.row(0), 96, row.begin());
    row[40] = bad;
    act_->values(row.data(), 96, ranges, values.data());
    EXPECT_TRUE(std::isnan(values[40])) << bad;
  }
}

// Ranges come from files: whatever they are, nothing is read or written out of place.
TEST_P(Acts, AnyRangesAreSafe) {
  constexpr float kMost = std::numeric_limits<float>::max();
  const Matrix<float> x = gaussian(1, 200, 7);
  const auto n = static_cast<size_t>(act_->n_ranges(200));
  for (const float first : {0.0f, -1.0f, 5.0f, 1e-40f, kMost, -kMost}) {
    for (const float second : {0.0f, -2.0f, 4.0f, kMost, -kMost}) {
      std::vector<float> ranges;
      for (size_t i = 0; i < n; ++i) ranges.push_back(i % 2 == 0 ? first : second);
      ASSERT_TRUE(check_ranges(*act_, 200, ranges));
      std::vector<float> values(200);
      act_->values(x.row(0), 200, ranges, values.data());
      for (const float value : values) EXPECT_TRUE(std::isfinite(value)) << first << " " << second;
    }
  }
  std::vector<float> wrong(n + 1, 1.0f);
  EXPECT_FALSE(check_ranges(*act_, 200, wrong));
  if (n == 0) return;
  wrong.resize(n);
  wrong[0] = std::nanf("");
  EXPECT_FALSE(check_ranges(*act_, 200, wrong));
}

std::vector<std::string_view> examples() {
  std::vector<std::string_view> texts;
  for (const ActInfo& info : act_quantizers()) {
    texts.insert(texts.end(), info.examples.begin(), info.examples.end());
  }
  return texts;
}

INSTANTIATE_TEST_SUITE_P(All, Acts, ::testing::ValuesIn(examples()));

}  // namespace
}  // namespace quern
