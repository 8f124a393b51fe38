// SPDX-License-Identifier: Apache-2.0
// Tiles of AMX in memory, for tests of what uses them on hosts without: to be included before that.
#pragma once

#include <cmath>
#include <cstring>

#include "base/float_types.h"
#include "kernels/intrinsics.h"

namespace quern::emulated {

struct Tile {
  uint8_t bytes[16][64];
};
struct State {
  uint8_t config[64] = {};
  Tile tiles[8] = {};
  int row_bytes(int t) const { return config[16 + 2 * t] + 256 * config[17 + 2 * t]; }
  int rows(int t) const { return config[48 + t]; }
};
inline thread_local State state;

inline void load_config(const void* config) { std::memcpy(state.config, config, 64); }
inline void release() { state = {}; }
inline void zero(int t) { state.tiles[t] = {}; }
inline void load(int t, const void* base, int64_t stride) {
  zero(t);
  for (int r = 0; r < state.rows(t); ++r) {
    const auto* from = static_cast<const uint8_t*>(base) + r * stride;
    std::memcpy(state.tiles[t].bytes[r], from, static_cast<size_t>(state.row_bytes(t)));
  }
}
inline void store(int t, void* base, int64_t stride) {
  for (int r = 0; r < state.rows(t); ++r) {
    auto* to = static_cast<uint8_t*>(base) + r * stride;
    std::memcpy(to, state.tiles[t].bytes[r], static_cast<size_t>(state.row_bytes(t)));
  }
}
template <class Weight>
void multiply(int sum, int a, int b) {
  for (int m = 0; m < state.rows(sum); ++m) {
    for (int n = 0; n < state.row_bytes(sum) / 4; ++n) {
      int32_t dot;
      std::memcpy(&dot, state.tiles[sum].bytes[m] + 4 * n, 4);
      for (int k = 0; k < state.row_bytes(a); ++k) {
        dot += static_cast<int8_t>(state.tiles[a].bytes[m][k]) *
               static_cast<Weight>(state.tiles[b].bytes[k / 4][4 * n + k % 4]);
      }
      std::memcpy(state.tiles[sum].bytes[m] + 4 * n, &dot, 4);
    }
  }
}
inline float of_bf16(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return bf16_to_float(bits);
}
inline void multiply_bf16(int sum, int a, int b) {
  for (int m = 0; m < state.rows(sum); ++m) {
    for (int n = 0; n < state.row_bytes(sum) / 4; ++n) {
      float even = 0, odd = 0, total;
      std::memcpy(&total, state.tiles[sum].bytes[m] + 4 * n, 4);
      for (int k = 0; k < state.row_bytes(a) / 4; ++k) {
        const uint8_t *x = state.tiles[a].bytes[m] + 4 * k, *y = state.tiles[b].bytes[k] + 4 * n;
        even = std::fma(of_bf16(x), of_bf16(y), even);
        odd = std::fma(of_bf16(x + 2), of_bf16(y + 2), odd);
      }
      total = total + (even + odd);
      std::memcpy(state.tiles[sum].bytes[m] + 4 * n, &total, 4);
    }
  }
}

}  // namespace quern::emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig quern::emulated::load_config
#define _tile_release quern::emulated::release
#define _tile_zero quern::emulated::zero
#define _tile_loadd quern::emulated::load
#define _tile_stream_loadd quern::emulated::load
#define _tile_stored quern::emulated::store
#define _tile_dpbssd quern::emulated::multiply<int8_t>
#define _tile_dpbsud quern::emulated::multiply<uint8_t>
#define _tile_dpbf16ps quern::emulated::multiply_bf16
