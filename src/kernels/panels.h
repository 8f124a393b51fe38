// SPDX-License-Identifier: Apache-2.0
// Products of weights and activations in int8: what the runtime multiplies when a codec's weights
// meet quantized activations.
//
// Weights come in panels of 16 rows, the operand that VNNI and AMX read without a shuffle. The
// columns are cut into groups of `group`, a multiple of 16; row r of a panel is
//     w[r, j] = scale[g, r] (level[j / 4, r, j % 4] - 128),   g = j / group.
// Rows of activations share the groups:
//     x[i, j] = scale[i, g] level[i, j],   level in -127 .. 127.
// The product is defined to the bit, whatever the ISA, the batch and the tiles it is computed in:
//     y[i, r] = fma(float(dot_g), scale_w[g, r] * scale_x[i, g], y[i, r])  for g = 0, 1, ...
// from y = +0, where dot_g is the sum of the group's level products, an exact integer. Groups may
// come in several calls, in order; the one with group 0 does not read y.
#pragma once

#include <cstdint>

namespace quern {

inline constexpr int64_t kPanelRows = 16;
inline constexpr int64_t kPanelGroup = 64;  // columns of a group, unless a codec has its own
inline constexpr int64_t kPanelGroupUnit = 16;
inline constexpr int64_t kMostPanelGroup = 1024;  // a group's dot is exact in a float
inline constexpr uint8_t kPanelZero = 128;        // the level of a zero

// Rows of activations. Columns past the last are levels of 0, so that those of weights do not
// matter.
struct Int8Rows {
  const int8_t* levels = nullptr;    // [n, stride], n_groups * group of them in use
  const float* scales = nullptr;     // [n, n_groups]
  const int32_t* offsets = nullptr;  // [n, n_groups]: -128 times the sum of a group's levels
  int64_t n = 0, n_groups = 0, group = 0, stride = 0;
};

// Consecutive panels of weights, of groups [first_group, first_group + n_groups) of their rows.
struct Panels {
  const uint8_t* levels = nullptr;  // a panel: [n_groups * group / 4][16][4]
  const float* scales = nullptr;    // a panel: [n_groups][16]
  int64_t levels_stride = 0;        // bytes from a panel to the next
  int64_t scales_stride = 0;        // elements, likewise
  int64_t n_rows = 0;               // of all panels; the last may be short
  int64_t first_group = 0, n_groups = 0;
};

// Panels to be written; the same layout.
struct MutablePanels {
  uint8_t* levels = nullptr;
  float* scales = nullptr;
  int64_t levels_stride = 0, scales_stride = 0;
};

}  // namespace quern
