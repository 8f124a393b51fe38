// SPDX-License-Identifier: Apache-2.0
// Panels against many int8 rows by AMX: 64 columns of 16 rows of a panel are a tile as they lie,
// and so are those of 16 rows of activations. Rows that fill no tile go by VNNI.
//
// Tiles 0 to 3 take the sums of 2 x 2 pairs, 4 and 5 hold activations, 6 and 7 weights. A group's
// sums leave the tiles as integers and are scaled by vectors, in the order of kernels/panels.h.
#include <algorithm>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"

namespace quern {
namespace {

constexpr int64_t kTile = 16;      // rows of a tile
constexpr int64_t kTileCols = 64;  // most columns of a step

void (*vector_dot)(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) = nullptr;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileConfig(int64_t step) {
    for (int t = 0; t < 8; ++t) {
      const bool is_left = t == 4 || t == 5, is_right = t >= 6;
      row_bytes[t] = static_cast<uint16_t>(is_left ? step : 64);
      rows[t] = static_cast<uint8_t>(is_right ? step / 4 : kTile);
    }
  }
};
static_assert(sizeof(TileConfig) == 64);

struct Sums {
  alignas(64) int32_t dots[2][2][kTile][kPanelRows];  // [rows][panel]
  alignas(64) float totals[2][2][kTile][kPanelRows];
};

// 2 x 2 tiles' dots of one group, from `step` columns at a time.
void dot_group(const uint8_t* const (&levels)[2], const int8_t* const (&rows)[2], int64_t stride,
               int64_t group, int64_t step, Sums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t j = 0; j < group; j += step) {
    _tile_loadd(4, rows[0] + j, stride);
    _tile_loadd(6, levels[0] + j * kPanelRows, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, levels[1] + j * kPanelRows, 64);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, rows[1] + j, stride);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums.dots[0][0], 64);
  _tile_stored(1, sums.dots[0][1], 64);
  _tile_stored(2, sums.dots[1][0], 64);
  _tile_stored(3, sums.dots[1][1], 64);
}

// 32 rows from i on and panels p, p + 1; with one of either left, the other repeats it and is not
// stored.
void dot_block(const Panels& w, const Int8Rows& x, int64_t p, int64_t i, int64_t step, float* y,
               int64_t ld_y) {
  const int64_t n_panels = (w.n_rows + kPanelRows - 1) / kPanelRows;
  const int64_t panels[2] = {p, std::min(p + 1, n_panels - 1)};
  const int64_t first_row[2] = {i, i + 2 * kTile <= x.n ? i + kTile : i};
  const int64_t stride = x.n_groups * x.group;
  const uint8_t* levels[2];
  const float* scales[2];
  const int8_t* rows[2];
  __mmask16 masks[2];
  for (int a = 0; a < 2; ++a) {
    levels[a] = w.levels + panels[a] * w.levels_stride;
    scales[a] = w.scales + panels[a] * w.scales_stride;
    rows[a] = x.levels + first_row[a] * stride + w.first_group * x.group;
    const int64_t left = w.n_rows - panels[a] * kPanelRows;
    masks[a] = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
  }
  Sums sums;
  const int n_tiles = first_row[1] == i ? 1 : 2, n_across = panels[1] == p ? 1 : 2;
  for (int b = 0; b < n_tiles; ++b) {
    for (int a = 0; a < n_across; ++a) {
      for (int64_t r = 0; r < kTile; ++r) {
        const float* from = y + (first_row[b] + r) * ld_y + panels[a] * kPanelRows;
        _mm512_store_ps(sums.totals[b][a][r], _mm512_maskz_loadu_ps(masks[a], from));
      }
    }
  }
  for (int64_t g = 0; g < w.n_groups; ++g) {
    dot_group(levels, rows, stride, x.group, step, sums);
    for (int b = 0; b < n_tiles; ++b) {
      const int64_t place = first_row[b] * x.n_groups + w.first_group + g;
      for (int a = 0; a < n_across; ++a) {
        const __m512 scale = _mm512_loadu_ps(scales[a]);
        for (int64_t r = 0; r < kTile; ++r) {
          const int64_t at = place + r * x.n_groups;
          const __m512i dot = _mm512_add_epi32(_mm512_load_si512(sums.dots[b][a][r]),
                                               _mm512_set1_epi32(x.offsets[at]));
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at]));
          float* total = sums.totals[b][a][r];
          _mm512_store_ps(total,
                          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, _mm512_load_ps(total)));
        }
      }
    }
    for (int a = 0; a < 2; ++a) {
      levels[a] += x.group * kPanelRows;
      scales[a] += kPanelRows;
      rows[a] += x.group;
    }
  }
  for (int b = 0; b < n_tiles; ++b) {
    for (int a = 0; a < n_across; ++a) {
      for (int64_t r = 0; r < kTile; ++r) {
        float* to = y + (first_row[b] + r) * ld_y + panels[a] * kPanelRows;
        _mm512_mask_storeu_ps(to, masks[a], _mm512_load_ps(sums.totals[b][a][r]));
      }
    }
  }
}

void panel_dot(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) {
  const int64_t n_tiled = x.n / kTile * kTile;
  if (n_tiled > 0) {
    const int64_t n_steps = (x.group + kTileCols - 1) / kTileCols, step = x.group / n_steps;
    if (step * n_steps != x.group || step % 4 != 0) return vector_dot(w, x, y, ld_y);
    const TileConfig config(step);
    _tile_loadconfig(&config);
    // GCC 12 declares the first eight bytes of that operand only: let nothing move across.
    asm volatile("" : : "r"(&config) : "memory");
    Int8Rows tiled = x;
    tiled.n = n_tiled;
    for (int64_t i = 0; i < n_tiled; i += 2 * kTile) {
      for (int64_t row = 0; row < w.n_rows; row += 2 * kPanelRows) {
        dot_block(w, tiled, row / kPanelRows, i, step, y, ld_y);
      }
    }
    _tile_release();
  }
  if (n_tiled == x.n) return;
  const Int8Rows rest{x.levels + n_tiled * x.n_groups * x.group,
                      x.scales + n_tiled * x.n_groups,
                      x.offsets + n_tiled * x.n_groups,
                      x.n - n_tiled,
                      x.n_groups,
                      x.group};
  vector_dot(w, rest, y + n_tiled * ld_y, ld_y);
}

}  // namespace

void fill_panels_amx(KernelTable& table) {
  vector_dot = table.panel_dot;
  table.panel_dot = panel_dot;
}

}  // namespace quern
