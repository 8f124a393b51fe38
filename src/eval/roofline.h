// SPDX-License-Identifier: Apache-2.0
// What the machine can do at best, measured where and when it is asked: the ceiling over speeds.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

// Best of several tries, on one thread and on all of thread_count().
struct Limit {
  std::string name;
  double one_thread = 0, all_threads = 0;
};

struct Roofline {
  Limit read, copy;          // bytes per second; a copied byte counts twice, read and written
  std::vector<Limit> peaks;  // operations per second, by the names of kernels/peaks.h
  const Limit* peak(std::string_view name) const;  // null if this host lacks it
};

struct RooflineOptions {
  size_t n_bytes = 0;    // read at a time; 0: 256 MiB or, if more, four times the last cache
  double seconds = 0.3;  // given to each limit, in all
  // Told what is measured and the share done; false cancels.
  std::function<bool(double, std::string_view)> proceed = [](double, std::string_view) {
    return true;
  };
};

Result<Roofline> measure_roofline(const RooflineOptions& options = {});

}  // namespace quern
