// SPDX-License-Identifier: Apache-2.0
// The only place that starts threads. Work is cut into pieces by size alone, never by the number
// of threads, so a result cannot depend on it.
#pragma once

#include <cstdint>
#include <functional>

#include "base/status.h"

namespace quern {

// Threads used from now on, the caller included; 0 means one per core. Not to be called while a
// parallel_for runs.
void set_thread_count(int n_threads);
int thread_count();

// From now on each thread, the caller of set_thread_count too, runs on one CPU, on a core of its
// own as long as there are any; false: wherever the system likes. What a thread touched first then
// stays near it, since it gets the same part of the same work again.
Status pin_threads(bool is_pinned);

// Calls body(begin, end) for consecutive pieces of [0, n), each `grain` long (the last may be
// shorter), from several threads at once. Returns when all are done. A nested call runs in place.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace quern
