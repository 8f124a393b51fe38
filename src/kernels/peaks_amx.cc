// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/peaks.h"

namespace quern {
namespace {

// The operand of LDTILECFG: all eight tiles have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

struct Values {
  Values() { std::memset(bytes, 0x3c, sizeof(bytes)); }
  uint8_t bytes[16 * 64];
};

// Tiles 0 to 3 take sums, 4 and 5 are left factors, 6 and 7 right ones: small numbers, as int8 and
// as bf16, since zeros may draw less power and so run faster.
void start_tiles() {
  static const TileConfig config;
  alignas(64) static const Values values;
  _tile_loadconfig(&config);
  // GCC 12 declares the first eight bytes of that operand only: let nothing move across.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values.bytes, 64);
  _tile_loadd(5, values.bytes, 64);
  _tile_loadd(6, values.bytes, 64);
  _tile_loadd(7, values.bytes, 64);
}

}  // namespace

void peak_int8_amx(int64_t n_turns) {
  start_tiles();
  for (int64_t i = 0; i < n_turns; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}

void peak_bf16_amx(int64_t n_turns) {
  start_tiles();
  for (int64_t i = 0; i < n_turns; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

}  // namespace quern
