// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/affinity.h"

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

// CPUs that threads of a job may run on, each thread's once.
std::vector<std::vector<int>> cpus_of_threads() {
  std::mutex mutex;
  std::map<std::thread::id, std::vector<int>> of_threads;
  parallel_for(1000, 1, [&](int64_t, int64_t) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));  // for others to take part
    const std::lock_guard<std::mutex> lock(mutex);
    of_threads[std::this_thread::get_id()] = usable_cpus().value();
  });
  std::vector<std::vector<int>> all;
  for (const auto& [id, cpus] : of_threads) all.push_back(cpus);
  return all;
}

TEST(Parallel, PinnedThreadsHaveACpuEach) {
  const std::vector<int> all = usable_cpus().value();
  set_thread_count(2);
  ASSERT_TRUE(pin_threads(true));
  for (const int n_threads : {2, 3, 1}) {
    set_thread_count(n_threads);
    EXPECT_EQ(usable_cpus().value(), std::vector<int>{all[0]});
    const auto of_threads = cpus_of_threads();
    EXPECT_LE(of_threads.size(), static_cast<size_t>(n_threads));
    std::set<int> used;
    for (const std::vector<int>& cpus : of_threads) {
      ASSERT_EQ(cpus.size(), 1u);
      used.insert(cpus[0]);
    }
    // With more threads than CPUs it is chance which of them get work.
    if (static_cast<size_t>(n_threads) <= all.size()) EXPECT_EQ(used.size(), of_threads.size());
  }
  ASSERT_TRUE(pin_threads(false));
  set_thread_count(0);
  for (const std::vector<int>& cpus : cpus_of_threads()) EXPECT_EQ(cpus, all);
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
