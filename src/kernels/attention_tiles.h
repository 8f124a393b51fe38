// SPDX-License-Identifier: Apache-2.0
// Tiles of rows, the pieces attention is cut into; part of attention.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "kernels/attention.h"

namespace quern {

inline constexpr int64_t kMaxTile = 64;  // rows

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Range&) const = default;
};

inline Range intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

inline Range unite(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// The spans, or the blocks, that hold a range.
inline Range cover(Range range, int64_t size) {
  if (range.empty()) return {0, 0};
  return {range.begin / size, ceil_div(range.end, size)};
}

// Rows [first, first + n) of a job.
struct AttentionTile {
  const AttendArgs* args;
  int64_t first, n;
  Range spans;  // that hold what some row sees

  Range seen(int64_t i, const KvSegment& segment) const {
    const int64_t query = (first + i) / args->n_heads;
    const Range row{segment.first[query], segment.last[query]};
    QUERN_CHECK(row.begin >= 0 && row.end <= args->n_ctx);
    return row.empty() ? Range{0, 0} : row;
  }
  Range seen(int64_t i) const {
    Range all{0, 0};
    for (const KvSegment& segment : args->segments) {
      const Range row = seen(i, segment);
      QUERN_CHECK(all.empty() || row.empty() || all.end == row.begin);
      all = unite(all, row);
    }
    return all;
  }
  int64_t offset(int64_t i, int64_t ld) const {
    return (first + i) / args->n_heads * ld + (first + i) % args->n_heads * args->d_head;
  }
  int64_t n_spans() const { return spans.end - spans.begin; }
  // Results of spans, [n_spans, n, d_head], and the logs of their sums, [n, n_spans].
  int64_t parts_size() const { return n_spans() * n * args->d_head; }
  int64_t lse_size() const { return n_spans() * n; }
};

inline std::vector<AttentionTile> tiles_of(std::span<const AttendArgs> jobs) {
  std::vector<AttentionTile> tiles;
  for (const AttendArgs& args : jobs) {
    const int64_t n_rows = args.n_q * args.n_heads;
    for (int64_t first = 0; first < n_rows; first += kMaxTile) {
      AttentionTile tile{&args, first, std::min(kMaxTile, n_rows - first), {0, 0}};
      for (int64_t i = 0; i < tile.n; ++i) {
        tile.spans = unite(tile.spans, cover(tile.seen(i), kKvSpan));
      }
      tiles.push_back(tile);
    }
  }
  return tiles;
}

}  // namespace quern
