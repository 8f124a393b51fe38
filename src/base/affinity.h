// SPDX-License-Identifier: Apache-2.0
// Which CPUs threads run on.
#pragma once

#include <pthread.h>

#include <span>
#include <vector>

#include "base/status.h"

namespace quern {

// The CPUs that the calling thread may run on. Of those that share a core the first comes before
// the second of any.
Result<std::vector<int>> usable_cpus();

// From now on the thread runs on these only.
Status bind_thread(pthread_t thread, std::span<const int> cpus);

}  // namespace quern
