// SPDX-License-Identifier: Apache-2.0
// What kernels that write panels share: constant vectors by a rule for each byte, a distance. Only
// for sources compiled for AVX-512.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

// Bytes of a row that are asked for before they are read: sixteen rows are too many streams, and
// each too short, for the processor to see where they go. It may lie past the end.
inline constexpr int64_t kPanelAhead = 256;

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
