// SPDX-License-Identifier: Apache-2.0
#include "codecs/scalar_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"

namespace quern {
namespace {

// The float t for which x > t says that x is coded as `upper`, not as `lower`: the midpoint, or
// just below it where the tie goes up.
float border(float lower, float upper, bool is_tie_up) {
  const double middle = (static_cast<double>(lower) + upper) / 2;
  float t = static_cast<float>(middle);
  if (t > middle || (t == middle && is_tie_up)) {
    t = std::nextafter(t, -std::numeric_limits<float>::infinity());
  }
  return t;
}

}  // namespace

ScalarTable::ScalarTable(int bits, std::span<const float> levels) : bits_(bits) {
  QUERN_CHECK(bits >= 1 && bits <= 8 && levels.size() == size_t{1} << bits);
  std::copy(levels.begin(), levels.end(), levels_.begin());
  std::vector<uint8_t> order;
  for (size_t code = 0; code < levels.size(); ++code) {
    const auto is_same = [&](uint8_t other) { return levels[other] == levels[code]; };
    if (!std::isfinite(levels[code]) || std::any_of(order.begin(), order.end(), is_same)) continue;
    order.push_back(static_cast<uint8_t>(code));
  }
  std::sort(order.begin(), order.end(), [&](int a, int b) { return levels_[a] < levels_[b]; });
  n_distinct_ = static_cast<unsigned>(order.size());
  std::copy(order.begin(), order.end(), codes_.begin());
  for (size_t r = 0; r < order.size(); ++r) ranked_levels_[r] = levels[order[r]];
  borders_.fill(std::numeric_limits<float>::infinity());
  for (size_t r = 0; r + 1 < order.size(); ++r) {
    borders_[r] = border(levels[order[r]], levels[order[r + 1]], order[r + 1] % 2 == 0);
  }
}

void table_decode_row_ref(const TableRow& row, float* dst) {
  const CodeSplit split(row.bits);
  for (int64_t i = 0; i < row.n; ++i) {
    unsigned code = get_code(row.low, i, split.low);
    if (split.high > 0) code |= get_code(row.high, i, split.high) << split.low;
    const float level = row.levels[code];
    const int64_t g = i / row.group;
    dst[i] = level * row.scales[g * row.sides + (row.sides == 2 && std::signbit(level) ? 1 : 0)];
    if (row.shifts != nullptr) dst[i] += row.shifts[g];
  }
}

void table_decode_row(const TableRow& row, float* dst) {
  const Isa isa = kernels().isa;
  const bool is_whole_vectors = row.group % 16 == 0 || row.group >= row.n;
  if (isa == Isa::kAvx512 && is_whole_vectors) return table_decode_row_avx512(row, dst);
  if (isa >= Isa::kAvx2 && is_whole_vectors) return table_decode_row_avx2(row, dst);
  table_decode_row_ref(row, dst);
}

namespace {

float unscaled(float u, float scale) { return scale == 0 ? 0 : u / scale; }

}  // namespace

void table_nearest_ref(const ScalarTable& table, const TableEntries& entries, uint8_t* codes) {
  for (int64_t i = 0; i < entries.n; ++i) {
    codes[i] = static_cast<uint8_t>(table.nearest(unscaled(entries.u[i], entries.scale)));
  }
}

void table_nearest(const ScalarTable& table, const TableEntries& entries, uint8_t* codes) {
  if (entries.n < 8 || kernels().isa < Isa::kAvx512) {
    return table_nearest_ref(table, entries, codes);
  }
  table_nearest_avx512(table, entries, codes);
}

double table_error_ref(const ScalarTable& table, const TableEntries& entries) {
  double lanes[16] = {};
  for (int64_t i = 0; i < entries.n; ++i) {
    const unsigned rank = table.rank_of(unscaled(entries.u[i], entries.scale));
    const float product = table.ranked_levels()[rank] * entries.scale;
    const double distance = entries.u[i] - product;
    const double squared = distance * distance;
    lanes[i % 16] += entries.weight == nullptr ? squared : entries.weight[i] * squared;
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

double table_error(const ScalarTable& table, const TableEntries& entries) {
  return kernels().isa < Isa::kAvx512 ? table_error_ref(table, entries)
                                      : table_error_avx512(table, entries);
}

}  // namespace quern
