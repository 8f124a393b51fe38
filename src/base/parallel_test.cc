// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace quern {
namespace {

TEST(Parallel, EveryIndexIsVisitedOnceForAnyThreadCount) {
  for (const int threads : {1, 2, 3, 8}) {
    set_thread_count(threads);
    for (const int64_t n : {0, 1, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
        parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const auto& count : visits) EXPECT_EQ(count, 1);
      }
    }
  }
  set_thread_count(0);
}

TEST(Parallel, NestedCallsRunInPlace) {
  std::atomic<int> total{0};
  parallel_for(8, 1, [&](int64_t, int64_t) {
    parallel_for(10, 1,
                 [&](int64_t begin, int64_t end) { total += static_cast<int>(end - begin); });
  });
  EXPECT_EQ(total, 80);
}

TEST(Parallel, ManySmallJobsInARow) {
  int64_t sum = 0;
  for (int job = 0; job < 2000; ++job) {
    std::atomic<int64_t> part{0};
    parallel_for(4, 1, [&](int64_t begin, int64_t) { part += begin; });
    sum += part;
  }
  EXPECT_EQ(sum, 2000 * 6);
}

}  // namespace
}  // namespace quern
