// SPDX-License-Identifier: Apache-2.0
// Panels against many int8 rows by AMX: 64 columns of 16 rows of a panel are a tile as they lie,
// and so are those of 16 rows of activations. Rows that fill no tile go by VNNI.
//
// What leaves a tile are the dots of one group, to be scaled by vectors in the order of
// kernels/panels.h. With groups of 64 columns that is more work than the products themselves, so
// the loop is built around it: the totals of 16 rows and a panel stay in registers while groups go
// by, and levels of weights become signed first, so that no dot needs an offset.
#include <algorithm>
#include <utility>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"
#include "tensor/matrix.h"

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

// What meets in the first cache: columns of so many rows of activations, and of one panel. What
// meets in the second: those rows, and all panels.
constexpr int64_t kBlockRows = 32;
constexpr int64_t kBlockCols = 512;

using Dots = int32_t[kTile][kPanelRows];

struct Shape {
  int64_t group, step;       // columns of a group and of a tile
  int64_t stride, n_groups;  // of activations: bytes and scales from a row to the next
};

// The dots of a group to tile kSum, by way of tiles kX and kW. A macro, since tiles are named by
// literals.
#define QUERN_MULTIPLY(kSum, kX, kW)                        \
  do {                                                      \
    _tile_zero(kSum);                                       \
    for (int64_t j = 0; j < shape.group; j += shape.step) { \
      _tile_loadd(kX, rows + j, shape.stride);              \
      _tile_loadd(kW, weights + j * kPanelRows, 64);        \
      _tile_dpbssd(kSum, kX, kW);                           \
    }                                                       \
    rows += shape.group;                                    \
    weights += shape.group * kPanelRows;                    \
  } while (false)

// Inlined, and with literal indices, so that the totals are registers: as an array that the
// instructions of tiles might touch they would live in memory.
template <size_t... kRows>
[[gnu::always_inline]] inline void add_scaled(const Dots& dots, const float* w_scales,
                                              const float* x_scales, int64_t n_groups,
                                              __m512 (&totals)[kTile],
                                              std::index_sequence<kRows...>) {
  const __m512 scale = _mm512_loadu_ps(w_scales);
  ((totals[kRows] = _mm512_fmadd_ps(
        _mm512_cvtepi32_ps(_mm512_load_si512(dots[kRows])),
        _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[static_cast<int64_t>(kRows) * n_groups])),
        totals[kRows])),
   ...);
}

template <size_t... kRows>
[[gnu::always_inline]] inline void load_totals(const float (*sums)[kPanelRows],
                                               __m512 (&totals)[kTile],
                                               std::index_sequence<kRows...>) {
  ((totals[kRows] = _mm512_load_ps(sums[kRows])), ...);
}

template <size_t... kRows>
[[gnu::always_inline]] inline void store_totals(const __m512 (&totals)[kTile],
                                                float (*sums)[kPanelRows],
                                                std::index_sequence<kRows...>) {
  (_mm512_store_ps(sums[kRows], totals[kRows]), ...);
}

#define QUERN_ADD(kGroup, kDots)                                                               \
  add_scaled(dots[kDots], w_scales + (kGroup)*kPanelRows, x_scales + (kGroup), shape.n_groups, \
             totals, kAll)

// 16 rows and a panel through `count` groups. Three groups are under way: one multiplies, the dots
// of the one before leave, and those of the one before that, which have reached the cache by then,
// are added.
void add_groups(const Shape& shape, int64_t count, const int8_t* rows, const float* x_scales,
                const int8_t* weights, const float* w_scales, float (*sums)[kPanelRows]) {
  alignas(64) Dots dots[2];
  __m512 totals[kTile];
  constexpr std::make_index_sequence<kTile> kAll;
  load_totals(sums, totals, kAll);
  int64_t g = 0;
  for (; g + 2 <= count; g += 2) {
    QUERN_MULTIPLY(0, 4, 6);
    if (g > 0) {
      _tile_stored(1, dots[1], 64);
      QUERN_ADD(g - 2, 0);
    }
    QUERN_MULTIPLY(1, 5, 7);
    _tile_stored(0, dots[0], 64);
    if (g > 0) QUERN_ADD(g - 1, 1);
  }
  if (g > 0) {
    _tile_stored(1, dots[1], 64);
    QUERN_ADD(g - 2, 0);
    QUERN_ADD(g - 1, 1);
  }
  if (g < count) {
    QUERN_MULTIPLY(0, 4, 6);
    _tile_stored(0, dots[0], 64);
    QUERN_ADD(g, 0);
  }
  store_totals(totals, sums, kAll);
}
#undef QUERN_MULTIPLY
#undef QUERN_ADD

inline __mmask16 rows_of(const Panels& w, int64_t panel) {
  const int64_t left = w.n_rows - panel * kPanelRows;
  return static_cast<__mmask16>(left >= kPanelRows ? 0xffffu : (1u << left) - 1);
}

// Signed levels of all panels, as they lie.
const int8_t* signed_levels(const Panels& w, int64_t n_panels, int64_t panel_bytes) {
  thread_local AlignedVector<int8_t> levels;
  const auto n = static_cast<size_t>(n_panels * panel_bytes);
  if (levels.size() < n) levels.resize(n);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(kPanelZero));
  for (int64_t p = 0; p < n_panels; ++p) {
    const uint8_t* from = w.levels + p * w.levels_stride;
    int8_t* to = levels.data() + p * panel_bytes;
    for (int64_t i = 0; i < panel_bytes; i += 64) {
      _mm512_store_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(from + i), sign));
    }
  }
  return levels.data();
}

// Rows of activations [i, i + 16 n_tiles) and all panels.
void dot_rows(const Panels& w, const int8_t* weights, const Int8Rows& x, int64_t step, int64_t i,
              int64_t n_tiles, float* y, int64_t ld_y) {
  const int64_t n_panels = (w.n_rows + kPanelRows - 1) / kPanelRows;
  const int64_t panel_bytes = w.n_groups * x.group * kPanelRows;
  const Shape shape{x.group, step, x.stride, x.n_groups};
  const int64_t most = std::max<int64_t>(1, kBlockCols / x.group);
  using Sums = float[kBlockRows][kPanelRows];
  thread_local AlignedVector<float> all_sums;
  const auto n_sums = static_cast<size_t>(n_panels * kBlockRows * kPanelRows);
  if (all_sums.size() < n_sums) all_sums.resize(n_sums);
  auto* sums = reinterpret_cast<Sums*>(all_sums.data());
  for (int64_t p = 0; p < n_panels; ++p) {
    const float* from = y + i * ld_y + p * kPanelRows;
    for (int64_t r = 0; r < n_tiles * kTile; ++r) {
      _mm512_store_ps(sums[p][r], w.first_group == 0
                                      ? _mm512_setzero_ps()
                                      : _mm512_maskz_loadu_ps(rows_of(w, p), from + r * ld_y));
    }
  }
  for (int64_t g = 0; g < w.n_groups; g += most) {
    const int64_t count = std::min(most, w.n_groups - g);
    for (int64_t p = 0; p < n_panels; ++p) {
      for (int64_t t = 0; t < n_tiles; ++t) {
        const int64_t row = i + t * kTile;
        add_groups(shape, count, x.levels + row * x.stride + (w.first_group + g) * x.group,
                   x.scales + row * x.n_groups + w.first_group + g,
                   weights + p * panel_bytes + g * x.group * kPanelRows,
                   w.scales + p * w.scales_stride + g * kPanelRows, sums[p] + t * kTile);
      }
    }
  }
  for (int64_t p = 0; p < n_panels; ++p) {
    float* to = y + i * ld_y + p * kPanelRows;
    for (int64_t r = 0; r < n_tiles * kTile; ++r) {
      _mm512_mask_storeu_ps(to + r * ld_y, rows_of(w, p), _mm512_load_ps(sums[p][r]));
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
    const int64_t n_panels = (w.n_rows + kPanelRows - 1) / kPanelRows;
    const int8_t* weights = signed_levels(w, n_panels, w.n_groups * x.group * kPanelRows);
    for (int64_t i = 0; i < n_tiled; i += kBlockRows) {
      dot_rows(w, weights, x, step, i, std::min(kBlockRows, n_tiled - i) / kTile, y, ld_y);
    }
    _tile_release();
  }
  if (n_tiled == x.n) return;
  const Int8Rows rest{x.levels + n_tiled * x.stride,
                      x.scales + n_tiled * x.n_groups,
                      x.offsets + n_tiled * x.n_groups,
                      x.n - n_tiled,
                      x.n_groups,
                      x.group,
                      x.stride};
  vector_dot(w, rest, y + n_tiled * ld_y, ld_y);
}

}  // namespace

void fill_panels_amx(KernelTable& table) {
  vector_dot = table.panel_dot;
  table.panel_dot = panel_dot;
}

}  // namespace quern
