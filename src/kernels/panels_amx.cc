// SPDX-License-Identifier: Apache-2.0
// Panels against many int8 rows by AMX: 64 columns of 16 rows of a panel are a tile as they lie,
// and so are those of 16 rows of activations. Rows that fill no tile go by VNNI.
//
// What leaves a tile are the dots of one group, to be scaled by vectors in the order of
// kernels/panels.h. With groups of 64 columns that is more work than the products themselves, so
// add_groups is built around it: the totals of 16 rows and a panel stay in registers while groups
// go by, and levels of weights become signed first, so that no dot needs an offset. With longer
// groups loading tiles and the memory for sums are what bind: dot_fours multiplies two panels by 32
// rows, four products for four loads, and lets sums leave while the next ones are under way.
#include <algorithm>
#include <utility>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"
#include "tensor/scratch.h"

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
      const bool is_left = t == 4 || t == 5, is_right = t >= 6;  // else a sum
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

// Dots of a group of two panels and 32 rows on their way to their sums: tile 2 i + p is of the i-th
// 16 rows and the p-th panel.
struct Leaving {
  alignas(64) Dots dots[4];
  // Sums of both panels side by side: where they come from and where they go, rows `ld_from` (0:
  // they are zeros) and `ld_to` apart.
  const float* from;
  float* to;
  int64_t ld_from, ld_to;
  __mmask16 rows[2];  // of the panels
  const float* x_scales;
  const int32_t* x_offsets;
  const float* w_scales[2];
};

// Adds the dots of a Leaving row by row.
class Adder {
 public:
  Adder(const Leaving& leaving, int64_t n_groups)
      : dots_(leaving.dots),
        from_(leaving.from),
        to_(leaving.to),
        x_scale_(leaving.x_scales),
        x_offset_(leaving.x_offsets),
        ld_from_(leaving.ld_from),
        ld_to_(leaving.ld_to),
        n_groups_(n_groups) {
    for (int p = 0; p < 2; ++p) {
      scales_[p] = _mm512_loadu_ps(leaving.w_scales[p]);
      rows_[p] = leaving.rows[p];
      kept_[p] = leaving.ld_from == 0 ? 0 : rows_[p];
    }
  }

  [[gnu::always_inline]] void add(int row) {
    const __m512 x_scale = _mm512_set1_ps(*x_scale_);
    const __m512i x_offset = _mm512_set1_epi32(*x_offset_);
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      const Dots& dots = dots_[row / kTile * 2 + p];
      const __m512 dot =
          _mm512_cvtepi32_ps(_mm512_add_epi32(x_offset, _mm512_load_si512(dots[row % kTile])));
      const __m512 before = _mm512_maskz_loadu_ps(kept_[p], from_ + p * kPanelRows);
      _mm512_mask_storeu_ps(to_ + p * kPanelRows, rows_[p],
                            _mm512_fmadd_ps(dot, _mm512_mul_ps(scales_[p], x_scale), before));
    }
    x_scale_ += n_groups_;
    x_offset_ += n_groups_;
    from_ += ld_from_;
    to_ += ld_to_;
  }

 private:
  const Dots* dots_;
  const float* from_;
  float* to_;
  const float* x_scale_;
  const int32_t* x_offset_;
  int64_t ld_from_, ld_to_, n_groups_;
  __m512 scales_[2];
  __mmask16 rows_[2], kept_[2];
};

// The dots of a group of two panels and 32 rows, of kSteps steps. Those of the group before leave
// meanwhile, some behind every product: all of them behind the last product would leave the tiles
// idle, since the window in which a processor looks for work holds less than a group.
//
// All loads of a step come before its products: a core at half its speed (likely its other thread
// is taken) does not overlap the two, and each change from one to the other costs time, a sixth of
// all with loads in between. Weights pass the first cache by (stream), so that rows and sums stay.
template <int kSteps>
void multiply_four(const Shape& shape, const int8_t* rows, const uint8_t* const (&weights)[2],
                   Leaving& leaving) {
  Adder before(leaving, shape.n_groups);
  const auto add_some = [&](int slot) {
#pragma GCC unroll 4
    for (int row = slot * 8 / kSteps; row < (slot + 1) * 8 / kSteps; ++row) before.add(row);
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
#pragma GCC unroll 16
  for (int s = 0; s < kSteps; ++s) {
    const int64_t j = s * shape.step;
    _tile_loadd(4, rows + j, shape.stride);
    _tile_stream_loadd(6, weights[0] + j * kPanelRows, 64);
    _tile_stream_loadd(7, weights[1] + j * kPanelRows, 64);
    _tile_loadd(5, rows + kTile * shape.stride + j, shape.stride);
    _tile_dpbsud(0, 4, 6);
    add_some(4 * s);
    _tile_dpbsud(1, 4, 7);
    add_some(4 * s + 1);
    _tile_dpbsud(2, 5, 6);
    add_some(4 * s + 2);
    _tile_dpbsud(3, 5, 7);
    add_some(4 * s + 3);
  }
  _tile_stored(0, leaving.dots[0], 64);
  _tile_stored(1, leaving.dots[1], 64);
  _tile_stored(2, leaving.dots[2], 64);
  _tile_stored(3, leaving.dots[3], 64);
}

inline __mmask16 rows_of(const Panels& w, int64_t panel) {
  const int64_t left = w.n_rows - panel * kPanelRows;
  return static_cast<__mmask16>(left >= kPanelRows ? 0xffffu : (1u << left) - 1);
}

// Signed levels of all panels, as they lie.
const int8_t* signed_levels(const Panels& w, int64_t n_panels, int64_t panel_bytes) {
  thread_local AlignedVector<int8_t> memory;
  int8_t* levels = grown(memory, n_panels * panel_bytes);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(kPanelZero));
  for (int64_t p = 0; p < n_panels; ++p) {
    const uint8_t* from = w.levels + p * w.levels_stride;
    int8_t* to = levels + p * panel_bytes;
    for (int64_t i = 0; i < panel_bytes; i += 64) {
      _mm512_store_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(from + i), sign));
    }
  }
  return levels;
}

using BlockSums = float[kBlockRows][kPanelRows];

BlockSums* scratch_sums(int64_t n_panels) {
  thread_local AlignedVector<float> sums;
  return reinterpret_cast<BlockSums*>(grown(sums, n_panels * kBlockRows * kPanelRows));
}

// Panels and rows of activations that meet.
struct Operands {
  const Panels& w;
  const Int8Rows& x;
  const int8_t* weights;  // signed levels for dot_tiles, a panel `panel_bytes` after the other
  int64_t panel_bytes, n_panels;
  Shape shape;
  float* y;
  int64_t ld_y;

  const int8_t* rows(int64_t i, int64_t g) const {
    return x.levels + i * x.stride + (w.first_group + g) * x.group;
  }
  const float* x_scales(int64_t i, int64_t g) const {
    return x.scales + i * x.n_groups + w.first_group + g;
  }
  const uint8_t* levels(int64_t p, int64_t g) const {
    return w.levels + p * w.levels_stride + g * x.group * kPanelRows;
  }
  const int8_t* signed_levels(int64_t p, int64_t g) const {
    return weights + p * panel_bytes + g * x.group * kPanelRows;
  }
  const int32_t* x_offsets(int64_t i, int64_t g) const {
    return x.offsets + i * x.n_groups + w.first_group + g;
  }
  const float* w_scales(int64_t p, int64_t g) const {
    return w.scales + p * w.scales_stride + g * kPanelRows;
  }
  float* out(int64_t i, int64_t p) const { return y + i * ld_y + p * kPanelRows; }
};

// Rows of activations [i, i + 32) and panels [0, n), n even. Sums wait in the first cache: rows of
// y may share its sets.
template <int kSteps>
void dot_fours(const Operands& o, int64_t i, int64_t n) {
  BlockSums* waiting = scratch_sums(n);
  const int64_t most = std::max<int64_t>(1, kBlockCols / o.x.group);
  Leaving leaving;
  leaving.from = leaving.to = waiting[0][0];
  leaving.ld_from = leaving.ld_to = leaving.rows[0] = leaving.rows[1] = 0;  // nothing leaves
  leaving.x_scales = o.x_scales(i, 0);
  leaving.x_offsets = o.x_offsets(i, 0);
  leaving.w_scales[0] = leaving.w_scales[1] = o.w_scales(0, 0);
  for (int64_t g0 = 0; g0 < o.w.n_groups; g0 += most) {
    const int64_t end = std::min(g0 + most, o.w.n_groups);
    for (int64_t p = 0; p < n; p += 2) {
      float *between = waiting[p][0], *y = o.out(i, p);
      for (int64_t g = g0; g < end; ++g) {
        multiply_four<kSteps>(o.shape, o.rows(i, g), {o.levels(p, g), o.levels(p + 1, g)}, leaving);
        const bool is_first = g == 0, is_last = g + 1 == o.w.n_groups;
        leaving.from = is_first ? y : between;
        leaving.ld_from = !is_first ? 2 * kPanelRows : o.w.first_group == 0 ? 0 : o.ld_y;
        leaving.to = is_last ? y : between;
        leaving.ld_to = is_last ? o.ld_y : 2 * kPanelRows;
        leaving.x_scales = o.x_scales(i, g);
        leaving.x_offsets = o.x_offsets(i, g);
        for (int64_t t = 0; t < 2; ++t) {
          leaving.rows[t] = rows_of(o.w, p + t);
          leaving.w_scales[t] = o.w_scales(p + t, g);
        }
      }
    }
  }
  Adder last(leaving, o.shape.n_groups);
  for (int row = 0; row < 2 * kTile; ++row) last.add(row);
}

// dot_fours for groups of so many steps; null: it has none.
auto* dot_fours_of(int64_t n_steps) {
  switch (n_steps) {
    case 2:
      return dot_fours<2>;
    case 4:
      return dot_fours<4>;
    case 8:
      return dot_fours<8>;
    case 16:
      return dot_fours<16>;
    default:
      return static_cast<decltype(&dot_fours<2>)>(nullptr);
  }
}

// Rows of activations [i, i + 16 n_tiles) and panels [first, o.n_panels).
void dot_tiles(const Operands& o, int64_t i, int64_t n_tiles, int64_t first) {
  BlockSums* sums = scratch_sums(o.n_panels);
  for (int64_t p = first; p < o.n_panels; ++p) {
    const float* from = o.out(i, p);
    for (int64_t r = 0; r < n_tiles * kTile; ++r) {
      _mm512_store_ps(sums[p][r], o.w.first_group == 0
                                      ? _mm512_setzero_ps()
                                      : _mm512_maskz_loadu_ps(rows_of(o.w, p), from + r * o.ld_y));
    }
  }
  const int64_t most = std::max<int64_t>(1, kBlockCols / o.x.group);
  for (int64_t g = 0; g < o.w.n_groups; g += most) {
    const int64_t count = std::min(most, o.w.n_groups - g);
    for (int64_t p = first; p < o.n_panels; ++p) {
      for (int64_t row = 0; row < n_tiles * kTile; row += kTile) {
        add_groups(o.shape, count, o.rows(i + row, g), o.x_scales(i + row, g),
                   o.signed_levels(p, g), o.w_scales(p, g), sums[p] + row);
      }
    }
  }
  for (int64_t p = first; p < o.n_panels; ++p) {
    float* to = o.out(i, p);
    for (int64_t r = 0; r < n_tiles * kTile; ++r) {
      _mm512_mask_storeu_ps(to + r * o.ld_y, rows_of(o.w, p), _mm512_load_ps(sums[p][r]));
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
    const int64_t panel_bytes = w.n_groups * x.group * kPanelRows;
    auto* const by_fours = dot_fours_of(n_steps);
    const bool is_all_fours = by_fours != nullptr && n_tiled % kBlockRows == 0 && n_panels % 2 == 0;
    const int8_t* weights = is_all_fours ? nullptr : signed_levels(w, n_panels, panel_bytes);
    const Operands o{w, x,   weights, panel_bytes, n_panels, {x.group, step, x.stride, x.n_groups},
                     y, ld_y};
    for (int64_t i = 0; i < n_tiled; i += kBlockRows) {
      const int64_t n_tiles = std::min(kBlockRows, n_tiled - i) / kTile;
      const int64_t n_fours = by_fours != nullptr && n_tiles == 2 ? n_panels / 2 * 2 : 0;
      if (n_fours > 0) by_fours(o, i, n_fours);
      if (n_fours < n_panels) dot_tiles(o, i, n_tiles, n_fours);
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
