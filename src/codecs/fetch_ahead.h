// SPDX-License-Identifier: Apache-2.0
// Asking for codes before they are used.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

// How far ahead of the codes in use, where the panels of a piece follow each other. Multiples of
// 4096 are a quarter slower on some processors.
inline constexpr int64_t kFetchAhead = 6144;

// Into the second cache: it waits for more lines at once than the first, whose few places such
// requests would hold for as long as memory takes. `bytes` may lie past the end of the codes.
inline void fetch_ahead(const void* bytes) {
  _mm_prefetch(static_cast<const char*>(bytes), _MM_HINT_T1);
}

}  // namespace quern
