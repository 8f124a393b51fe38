// SPDX-License-Identifier: Apache-2.0
// What a part of the work takes of the time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace quern {

// Time that callers spent in a part of the work, from many threads.
struct SpentTime {
  std::atomic<int64_t> nanoseconds{0};
  double seconds() const { return static_cast<double>(nanoseconds.load()) / 1e9; }
};

// Runs `work`; its time is added to `time`, unless that is null.
template <class Work>
void spend(SpentTime* time, const Work& work) {
  using Clock = std::chrono::steady_clock;
  if (time == nullptr) return work();
  const auto start = Clock::now();
  work();
  time->nanoseconds +=
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

}  // namespace quern
