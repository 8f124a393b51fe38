// SPDX-License-Identifier: Apache-2.0
// The only place that starts threads. Work is cut into pieces by size alone, never by the number
// of threads, so a result cannot depend on it.
#pragma once

#include <cstdint>
#include <functional>

namespace quern {

// Threads used from now on, the caller included; 0 means one per core. Not to be called while a
// parallel_for runs.
void set_thread_count(int n_threads);
int thread_count();

// Calls body(begin, end) for consecutive pieces of [0, n), each `grain` long (the last may be
// shorter), from several threads at once. Returns when all are done. A nested call runs in place.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace quern
