// SPDX-License-Identifier: Apache-2.0
#include "base/affinity.h"

#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <fstream>

namespace quern {
namespace {

// Of the CPUs that share a core with this one, those before it. None where the system does not say.
int n_siblings_before(int cpu) {
  std::ifstream file(
      fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
  int n = 0, first = 0, last = 0;
  while (file >> first) {  // "0,8" or "0-1"
    last = first;
    if (file.peek() == '-') file.ignore() >> last;
    n += std::clamp(cpu - first, 0, last - first + 1);
    if (file.get() != ',') break;
  }
  return n;
}

}  // namespace

Result<std::vector<int>> usable_cpus() {
  cpu_set_t set;
  if (const int failure = pthread_getaffinity_np(pthread_self(), sizeof set, &set); failure != 0) {
    return error("the CPUs of a thread: {}", std::strerror(failure));
  }
  std::vector<std::pair<int, int>> ranked;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) ranked.emplace_back(n_siblings_before(cpu), cpu);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<int> cpus;
  cpus.reserve(ranked.size());
  for (const auto& [rank, cpu] : ranked) cpus.push_back(cpu);
  return cpus;
}

Status bind_thread(pthread_t thread, std::span<const int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  if (const int failure = pthread_setaffinity_np(thread, sizeof set, &set); failure != 0) {
    return error("binding a thread to CPU {}: {}", fmt::join(cpus, ", "), std::strerror(failure));
  }
  return {};
}

}  // namespace quern
