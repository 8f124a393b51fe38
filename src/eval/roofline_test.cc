// SPDX-License-Identifier: Apache-2.0
#include "eval/roofline.h"

#include <gtest/gtest.h>

#include "kernels/kernels.h"
#include "kernels/peaks.h"

namespace quern {
namespace {

TEST(Roofline, HasEveryLimitOfTheHost) {
  RooflineOptions options;
  options.n_bytes = 9 << 20;  // not a multiple of what a thread takes
  options.seconds = 0.001;
  std::vector<double> shares;
  options.proceed = [&](double done, std::string_view) {
    shares.push_back(done);
    return true;
  };
  const auto roofline = measure_roofline(options);
  ASSERT_TRUE(roofline);
  std::vector<const Limit*> limits = {&roofline->read, &roofline->copy};
  for (const PeakLoop& loop : peak_loops()) limits.push_back(roofline->peak(loop.name));
  EXPECT_EQ(limits.size(), shares.size());
  for (const Limit* limit : limits) {
    ASSERT_NE(limit, nullptr);
    EXPECT_GT(limit->one_thread, 0) << limit->name;
    EXPECT_GT(limit->all_threads, 0) << limit->name;
  }
  EXPECT_NE(roofline->peak(fmt::format("fp32_{}", isa_name(kernels().isa))), nullptr);
  EXPECT_EQ(roofline->peak("fp7_abacus"), nullptr);
}

TEST(Roofline, StopsWhenAsked) {
  RooflineOptions options;
  options.n_bytes = 1;
  options.proceed = [](double, std::string_view) { return false; };
  const auto roofline = measure_roofline(options);
  ASSERT_FALSE(roofline);
  EXPECT_EQ(roofline.error().kind, ErrorKind::kCancelled);
}

}  // namespace
}  // namespace quern
