// SPDX-License-Identifier: Apache-2.0
// Checks of our own invariants. A failure is a bug in quern: it prints where and aborts.
#pragma once

namespace quern {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}

#define QUERN_CHECK(condition)                               \
  do {                                                       \
    if (!(condition)) [[unlikely]] {                         \
      ::quern::check_failed(#condition, __FILE__, __LINE__); \
    }                                                        \
  } while (false)

#ifdef NDEBUG
#define QUERN_DCHECK(condition) \
  do {                          \
  } while (false)
#else
#define QUERN_DCHECK(condition) QUERN_CHECK(condition)
#endif
