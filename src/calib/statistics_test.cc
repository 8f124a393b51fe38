// SPDX-License-Identifier: Apache-2.0
#include "calib/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "gaussian.h"

namespace quern {
namespace {

constexpr int64_t kTokens = 37, kIn = 9;

// Shows the rows in two pieces, as two samples would.
void show(StatisticsTap& tap, Role role, int expert, const Matrix<float>& x) {
  tap.input(role, expert, x.view().row_range(0, 20));
  tap.input(role, expert, x.view().row_range(20, kTokens - 20));
}

TEST(Statistics, AreThoseOfAllRows) {
  const Matrix<float> x = gaussian(kTokens, kIn, 1);
  const StatisticsNeed need{.site = Site::kMlpIn, .second_moment = true, .max_rows = 10};
  StatisticsTap tap({&need, 1}, kTokens);
  show(tap, Role::kGate, -1, x);
  const auto all = tap.take();
  ASSERT_EQ(all.size(), 1u);
  const SiteStatistics& s = all.at(Site::kMlpIn);
  EXPECT_EQ(s.n_rows, kTokens);
  for (int64_t j = 0; j < kIn; ++j) {
    float largest = 0;
    double sum = 0;
    std::vector<double> products(kIn, 0.0);
    for (int64_t i = 0; i < kTokens; ++i) {
      largest = std::max(largest, std::abs(x(i, j)));
      sum += std::abs(x(i, j));
      for (int64_t k = 0; k < kIn; ++k) {
        products[static_cast<size_t>(k)] += double(x(i, j)) * x(i, k);
      }
    }
    const auto at = static_cast<size_t>(j);
    EXPECT_EQ(s.abs_max[at], largest);
    EXPECT_NEAR(s.mean_abs[at], sum / kTokens, 1e-14);
    EXPECT_NEAR(s.mean_square[at], products[at] / kTokens, 1e-14);
    for (int64_t k = 0; k < kIn; ++k) {  // sums of 37 products in float
      EXPECT_NEAR(s.second_moment(j, k), products[static_cast<size_t>(k)] / kTokens, 1e-6);
      EXPECT_EQ(s.second_moment(j, k), s.second_moment(k, j));
    }
  }
  // Every third or fourth row, the first among them.
  ASSERT_EQ(s.rows.rows(), 10);
  int64_t last = -4;
  for (int64_t r = 0; r < s.rows.rows(); ++r) {
    int64_t i = last + 1;
    while (i < kTokens && !std::equal(x.row(i), x.row(i) + kIn, s.rows.row(r))) ++i;
    EXPECT_LE(i - last, 4) << r;
    EXPECT_GE(i - last, 3) << r;
    last = i;
  }
}

TEST(Statistics, EndTheLayerBehindTheLastSiteThatIsNeeded) {
  const Matrix<float> x = gaussian(kTokens, kIn, 2);
  const StatisticsNeed needs[] = {{.site = Site::kHeads}, {.site = Site::kAttnIn}};
  StatisticsTap tap(needs, kTokens);
  EXPECT_TRUE(tap.input(Role::kQ, -1, x.view()));
  EXPECT_FALSE(tap.input(Role::kO, -1, x.view()));
  EXPECT_EQ(tap.take().size(), 2u);
}

TEST(Statistics, GatherAllExpertsAndLeaveOutWhatNoRowReached) {
  const Matrix<float> x = gaussian(kTokens, kIn, 3);
  const StatisticsNeed needs[] = {{.site = Site::kFfn, .max_rows = 1000}, {.site = Site::kHeads}};
  StatisticsTap tap(needs, kTokens);
  show(tap, Role::kDown, 0, x);
  show(tap, Role::kDown, 3, x);
  tap.input(Role::kSharedDown, -1, x.view());
  const auto all = tap.take();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all.at(Site::kFfn).n_rows, 2 * kTokens);
  EXPECT_EQ(all.at(Site::kFfn).rows.rows(), kTokens);
}

}  // namespace
}  // namespace quern
