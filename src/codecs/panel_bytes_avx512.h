// SPDX-License-Identifier: Apache-2.0
// What kernels that write panels share: constant vectors by a rule for each byte, a look ahead.
// Only for sources compiled for AVX-512.
#pragma once

#include <cstdint>

#include "kernels/fetch_ahead.h"
#include "kernels/intrinsics.h"
#include "kernels/panels.h"

namespace quern {

// Asks for the bytes below `bytes` in the next panel: sixteen rows are too many streams, and each
// too short, for the processor to see where they go. They may lie past the end.
inline void prefetch_next_panel(const uint8_t* bytes, int64_t stride) {
  fetch_ahead(bytes + kPanelRows * stride);
}

struct alignas(64) PanelBytes {
  uint8_t at[64];
  __m512i load() const { return _mm512_load_si512(at); }
};

template <class Value>
constexpr PanelBytes panel_bytes(const Value& value) {
  PanelBytes bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = static_cast<uint8_t>(value(i));
  return bytes;
}

}  // namespace quern
