// SPDX-License-Identifier: Apache-2.0
// The integer form of bit planes.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "codecs/bit_planes.h"
#include "codecs/bit_stream.h"
#include "codecs/code_panels.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr float kMost = 64;  // level of the largest

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint8_t Bytes4 __attribute__((vector_size(4)));

// Rounds a table of kLevels to entries of 4 bytes, 64 bytes apart; returns the scale. Levels below
// 2^-100 are zero; an infinity or a NaN makes zeros and a scale of NaN.
template <int kLevels>
float round_table(const float* levels, uint8_t* entries) {
  constexpr uint32_t kInfinity = 0x7f800000u, kTiny = (127u - 100u) << 23;
  constexpr int kParts = kLevels > 4 ? 2 : 1;
  Float4 parts[kParts];
  if constexpr (kLevels == 2) {
    parts[0] = Float4{levels[0], levels[1], 0, 0};
  } else {
    std::memcpy(parts, levels, sizeof(parts));
  }
  const auto magnitude = [](Float4 x) { return std::bit_cast<Int4>(x) & 0x7fffffff; };
  const auto greater = [](Int4 a, Int4 b) { return a > b ? a : b; };
  Int4 most = greater(magnitude(parts[0]), magnitude(parts[kParts - 1]));
  most = greater(most, __builtin_shufflevector(most, most, 2, 3, 0, 1));
  most = greater(most, __builtin_shufflevector(most, most, 1, 0, 3, 2));
  const auto largest = static_cast<uint32_t>(most[0]);
  const bool is_number = largest >= kTiny && largest < kInfinity;
  const float to_levels = is_number ? kMost / std::bit_cast<float>(largest) : 0;
  for (int i = 0; i < kParts; ++i) {
    Int4 level = {kPanelZero, kPanelZero, kPanelZero, kPanelZero};
    // Truncation rounds what is positive.
    if (is_number) level += __builtin_convertvector(parts[i] * to_levels + 128.5f, Int4) - 128;
    const Bytes4 bytes = __builtin_convertvector(level, Bytes4);
    std::memcpy(entries + i * 4 * kPanelRows, &bytes, 4);
  }
  if (largest >= kInfinity) return std::numeric_limits<float>::quiet_NaN();
  return is_number ? std::bit_cast<float>(largest) / kMost : 0;
}

using RoundTable = float (*)(const float* levels, uint8_t* entries);
constexpr RoundTable kRoundTable[kMostBitPlanes] = {round_table<2>, round_table<4>, round_table<8>};

}  // namespace

void bit_panel_ref(const BitPanel& rows, uint8_t* levels) {
  const int n_parts = rows.n_planes > 2 ? 2 : 1;
  for (int64_t j = 0; j < rows.n_cols; ++j) {
    const uint8_t* table = rows.tables + j / rows.group * n_parts * 4 * kPanelRows;
    for (int64_t r = 0; r < rows.n_rows; ++r) {
      unsigned code = 0;
      for (int p = 0; p < rows.n_planes; ++p) {
        code |= get_code(rows.planes[p] + (p < 2 ? r * rows.stride : 0), j, 1) << p;
      }
      levels[(j / 4 * kPanelRows + r) * 4 + j % 4] =
          table[(code / 4 * kPanelRows + static_cast<unsigned>(r)) * 4 + code % 4];
    }
  }
}

bool BitPlanes::has_panels(int64_t n_in) const {
  return panel_group_of(group_cols(n_in), n_in) > 0;
}

PanelTile BitPlanes::panel_tile(int64_t n_in) const {
  const int64_t group = group_cols(n_in), in_panel = panel_group_of(group, n_in);
  return in_panel == 0 ? PanelTile() : row_tile(in_panel, group, n_in);
}

void BitPlanes::write_panel(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                            int64_t n_cols, const uint8_t* tables, int64_t group,
                            uint8_t* levels) const {
  const int64_t bytes = stream_bytes(codes.n_in, 1);
  const int n_planes = static_cast<int>(names_.size());
  BitPanel panel{{}, n_planes, bytes, tables, n_rows, n_cols, group};
  for (int p = 0; p < n_planes; ++p) {
    panel.planes[p] = reinterpret_cast<const uint8_t*>(codes.planes[static_cast<size_t>(p)]) +
                      (p < row_planes() ? row : 0) * bytes + col / 8;
  }
  (kernels().isa == Isa::kAvx512 ? bit_panel_avx512 : bit_panel_ref)(panel, levels);
}

void BitPlanes::decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                              int64_t n_cols, const NumbersOf& levels_of,
                              const MutablePanels& out) const {
  const int64_t group = group_cols(codes.n_in), in_panel = panel_group_of(group, codes.n_in);
  const int64_t n = ceil_div(n_cols, group);
  const int64_t n_levels = int64_t{1} << names_.size();
  const int64_t table_bytes = 4 * kPanelRows * std::max<int64_t>(1, n_levels / 4);
  const RoundTable round = kRoundTable[names_.size() - 1];
  thread_local std::vector<float> levels, scales;
  thread_local std::vector<uint8_t> tables;
  levels.resize(static_cast<size_t>(n * n_levels));
  scales.resize(static_cast<size_t>(n * kPanelRows));
  tables.resize(static_cast<size_t>(n * table_bytes));
  for (int64_t r = 0; r < n_rows; r += kPanelRows) {
    const int64_t height = std::min(kPanelRows, n_rows - r), p = r / kPanelRows;
    for (int64_t i = 0; i < height; ++i) {
      levels_of(codes, row + r + i, col / group, n, levels.data());
      float* scale = scales.data() + i * n;
      for (int64_t g = 0; g < n; ++g) {
        scale[g] = round(levels.data() + g * n_levels, tables.data() + g * table_bytes + 4 * i);
      }
    }
    write_panel(codes, row + r, height, col, n_cols, tables.data(), group,
                out.levels + p * out.levels_stride);
    scale_panel(scales.data(), n, height, n_cols, group, in_panel,
                out.scales + p * out.scales_stride);
  }
}

void BitPlanes::decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                              int64_t n_cols, std::array<int8_t, 4> levels,
                              const NumbersOf& scales_of, const MutablePanels& out) const {
  const int64_t group = group_cols(codes.n_in), in_panel = panel_group_of(group, codes.n_in);
  const int64_t n = ceil_div(n_cols, group);
  uint8_t table[4 * kPanelRows];
  for (size_t i = 0; i < sizeof(table); ++i) {
    table[i] = static_cast<uint8_t>(kPanelZero + levels[i % 4]);
  }
  thread_local std::vector<float> scales;
  scales.resize(static_cast<size_t>(n * kPanelRows));
  for (int64_t r = 0; r < n_rows; r += kPanelRows) {
    const int64_t height = std::min(kPanelRows, n_rows - r), p = r / kPanelRows;
    for (int64_t i = 0; i < height; ++i) {
      scales_of(codes, row + r + i, col / group, n, scales.data() + i * n);
    }
    write_panel(codes, row + r, height, col, n_cols, table, n_cols,
                out.levels + p * out.levels_stride);
    scale_panel(scales.data(), n, height, n_cols, group, in_panel,
                out.scales + p * out.scales_stride);
  }
}

}  // namespace quern
