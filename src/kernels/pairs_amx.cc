// SPDX-License-Identifier: Apache-2.0
// Rows against blocks of bfloat16 by AMX: 32 terms of 16 columns of a block are a tile as they lie.
// Rows become bfloat16 once, 32 of them, unless they are, and then meet two tiles of columns at a
// time, four products for four loads.
#include <algorithm>

#include "kernels/intrinsics.h"
#include "kernels/pack_avx512.h"
#include "kernels/tables.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

constexpr int64_t kTile = 16;         // rows of a tile, columns of sums
constexpr int64_t kRows = 2 * kTile;  // that meet a block together
// Fewer rows go by vectors.
constexpr int64_t kFewRows = 12;

void (*vector_product)(const PairProduct& product) = nullptr;

struct alignas(64) PairTileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  PairTileConfig() {
    std::fill_n(row_bytes, 8, uint16_t{64});
    std::fill_n(rows, 8, uint8_t{kTile});
  }
};
static_assert(sizeof(PairTileConfig) == 64);

// n floats that are bfloat16, n a multiple of 32.
void to_bf16(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i low = _mm512_loadu_si512(x + i), high = _mm512_loadu_si512(x + i + 16);
    _mm512_storeu_si512(y + i, upper_halves(low, high));
  }
}

// Rows [i, i + 32) of a; zeros where there are fewer.
struct PackedRows {
  const uint16_t* data;
  int64_t stride;  // bytes

  PackedRows(const PairProduct& p, int64_t i) {
    if (p.packed_a != nullptr && i + kRows <= p.n_rows) {
      data = p.packed_a + i * p.ld_a;
      stride = p.ld_a * 2;
      return;
    }
    const int64_t n = p.step_a == 0 ? p.n_v : p.n_blocks * p.n_v;
    const int64_t ld = n + 32;  // rows a power of two apart would share a cache set
    thread_local AlignedVector<uint16_t> rows;
    rows.resize(std::max(rows.size(), static_cast<size_t>(kRows * ld)));
    for (int64_t r = 0; r < kRows; ++r) {
      uint16_t* to = rows.data() + r * ld;
      if (i + r >= p.n_rows) {
        std::fill_n(to, n, uint16_t{0});
      } else if (p.packed_a != nullptr) {
        std::copy_n(p.packed_a + (i + r) * p.ld_a, n, to);
      } else {
        to_bf16(p.a + (i + r) * p.ld_a, n, to);
      }
    }
    data = rows.data();
    stride = ld * 2;
    asm volatile("" : : "r"(data) : "memory");  // GCC 12 does not say that loading tiles reads it
  }
};

// Adds `n_terms` terms to the sums of 32 rows and 32 columns, tiles 0 to 3.
void add_terms(const PackedRows& rows, int64_t first, const uint16_t* v, int64_t n_terms,
               int64_t n) {
  const uint16_t* low = rows.data + first;
  const uint16_t* high = low + kTile * rows.stride / 2;
  for (int64_t t = 0; t < n_terms; t += kPairGroup, v += kPairGroup * n) {
    _tile_loadd(4, low + t, rows.stride);
    _tile_loadd(6, v, n * 4);
    _tile_loadd(7, v + 2 * kTile, n * 4);
    _tile_loadd(5, high + t, rows.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The sums to rows of y, of which there are n_rows.
void store_sums(float* y, int64_t ld_y, int64_t n_rows) {
  if (n_rows >= kRows) {
    _tile_stored(0, y, ld_y * 4);
    _tile_stored(1, y + kTile, ld_y * 4);
    _tile_stored(2, y + kTile * ld_y, ld_y * 4);
    _tile_stored(3, y + kTile * ld_y + kTile, ld_y * 4);
    return;
  }
  alignas(64) float sums[kRows][kRows];
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + kTile, sizeof sums[0]);
  _tile_stored(2, sums[kTile], sizeof sums[0]);
  _tile_stored(3, sums[kTile] + kTile, sizeof sums[0]);
  for (int64_t r = 0; r < n_rows; ++r) std::copy_n(sums[r], kRows, y + r * ld_y);
}

void pair_product(const PairProduct& p) {
  if (p.n_rows < kFewRows || p.n_v % kPairGroup != 0 || p.n % kRows != 0) {
    return vector_product(p);
  }
  const PairTileConfig config;
  _tile_loadconfig(&config);
  // GCC 12 declares the first eight bytes of that operand only: let nothing move across.
  asm volatile("" : : "r"(&config) : "memory");
  for (int64_t i = 0; i < p.n_rows; i += kRows) {
    const PackedRows rows(p, i);
    const int64_t n_rows = std::min(kRows, p.n_rows - i);
    float* y = p.y + i * p.ld_y;
    // Sums over all blocks stay in tiles.
    const int64_t n_apart = p.step_y == 0 ? 1 : p.n_blocks, n_together = p.n_blocks / n_apart;
    for (int64_t b = 0; b < n_apart; ++b) {
      for (int64_t j = 0; j < p.n; j += kRows) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t t = b; t < b + n_together; ++t) {
          add_terms(rows, t * p.step_a, p.blocks[t] + 2 * j, p.n_v, p.n);
        }
        store_sums(y + b * p.step_y + j, p.ld_y, n_rows);
      }
    }
  }
  _tile_release();
}

}  // namespace

void fill_pairs_amx(KernelTable& table) {
  vector_product = table.pair_product;
  table.pair_product = pair_product;
}

}  // namespace quern
