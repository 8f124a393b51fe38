// SPDX-License-Identifier: Apache-2.0
#include "base/affinity.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <thread>

namespace quern {
namespace {

TEST(Affinity, AThreadRunsWhereItIsBound) {
  const auto cpus = usable_cpus();
  ASSERT_TRUE(cpus && !cpus->empty());
  std::vector<int> ascending = *cpus;
  std::sort(ascending.begin(), ascending.end());
  EXPECT_EQ(std::adjacent_find(ascending.begin(), ascending.end()), ascending.end());
  for (const int cpu : *cpus) {
    std::thread([cpu] {
      ASSERT_TRUE(bind_thread(pthread_self(), {{cpu}}));
      EXPECT_EQ(sched_getcpu(), cpu);
      EXPECT_EQ(usable_cpus().value(), std::vector<int>{cpu});
    }).join();
  }
  EXPECT_EQ(usable_cpus().value(), *cpus);
  const auto nowhere = bind_thread(pthread_self(), {});
  ASSERT_FALSE(nowhere);
  EXPECT_NE(nowhere.error().message.find("binding"), std::string::npos);
}

}  // namespace
}  // namespace quern
