// SPDX-License-Identifier: Apache-2.0
// Constant vectors by a rule for each byte; what kernels that write panels are made of. Only for
// sources compiled for AVX-512.
#pragma once

#include <cstdint>

#include "kernels/intrinsics.h"

namespace quern {

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
