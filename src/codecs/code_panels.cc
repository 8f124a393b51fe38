// SPDX-License-Identifier: Apache-2.0
#include "codecs/code_panels.h"

#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "codecs/bit_stream.h"
#include "kernels/kernels.h"

namespace quern {

int64_t panel_group_of(int64_t group, int64_t n_in) {
  constexpr int64_t kMost = 256, kStep = 16;
  if (group >= n_in) {
    int64_t whole = kMost;
    while (whole > kPanelGroup && whole > n_in) whole /= 2;
    return whole;
  }
  if (group % kStep != 0) return 0;
  int64_t best = kMost;
  while (group % best != 0) best -= kStep;
  return best;
}

PanelTile row_tile(int64_t panel_group, int64_t group, int64_t n_in) {
  return {kPanelRows, std::lcm(group >= n_in ? panel_group : group, int64_t{64}), panel_group};
}

void code_panel_ref(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel) {
  const int64_t low_bytes = stream_bytes(codes.n_in, codes.low_bits);
  const int64_t high_bytes = stream_bytes(codes.n_in, codes.high_bits);
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t j = 0; j < codes.n_in; ++j) {
      unsigned code = get_code(codes.low + (row + r) * low_bytes, j, codes.low_bits);
      if (codes.high_bits > 0) {
        code |= get_code(codes.high + (row + r) * high_bytes, j, codes.high_bits) << codes.low_bits;
      }
      panel[(j / 4 * kPanelRows + r) * 4 + j % 4] = static_cast<uint8_t>(code);
    }
  }
}

void code_panel(const CodeRows& codes, int64_t row, int64_t n_rows, uint8_t* panel) {
  const Isa isa = kernels().isa;
  const auto write = isa == Isa::kAvx512 ? code_panel_avx512
                     : isa == Isa::kAvx2 ? code_panel_avx2
                                         : code_panel_ref;
  write(codes, row, n_rows, panel);
}

void scale_panel(const float* values, int64_t stride, int64_t n_rows, int64_t n_cols, int64_t group,
                 int64_t panel_group, float* panel) {
  for (int64_t j = 0; j < n_cols; j += panel_group, panel += kPanelRows) {
    for (int64_t r = 0; r < n_rows; ++r) panel[r] = values[r * stride + j / group];
  }
}

}  // namespace quern
