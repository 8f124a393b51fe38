// SPDX-License-Identifier: Apache-2.0
// Rows are the heads of a group, query by query. They go in tiles that share every load of K and V:
// scores of the whole visible range, softmax by row, then weighted sums of rows of V. Positions
// come in blocks that stay in the first cache, where what is stored becomes floats once for all
// rows. Of a block of turned keys, a vector holds the scores of a row side by side: no sum crosses
// a register. Within a block, rows go by fours, as the kernels take them. Where the rows of a four
// see different ranges, the positions they all see go together and the ragged ends row by row; both
// add positions in ascending order, so the split is invisible in the result, as are segments.
#include "kernels/attention.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

constexpr int64_t kTileScores = 131072;         // scores of a tile stay in half of a second cache
constexpr int64_t kMinTile = 8, kMaxTile = 64;  // rows; a group of heads meets its K and V once
constexpr int64_t kFour = 4, kTurnedUnit = 32;

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Range&) const = default;
};

Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

Range unite(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// What the rows of a tile see of a segment.
struct Visible {
  struct Four {
    Range any, all;  // positions that some row, that every row sees
  };
  const KvBlocks* blocks = nullptr;
  std::array<Range, kMaxTile> rows;
  std::array<Four, kMaxTile / kFour> fours;
  Range any{0, 0};  // whole blocks that hold what some row sees
};

// Scratch outlives the call, so that a step allocates nothing once it has seen its longest context.
struct Scratch {
  AlignedVector<float> scores, q, out, block;
  std::vector<Visible> segments;
  static float* grown(AlignedVector<float>& buffer, int64_t n) {
    if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
    return buffer.data();
  }
};

// Rows [first, first + n) and what they see.
class Tile {
 public:
  Tile(const AttendArgs& args, const KernelTable& table, int64_t first, int64_t n, Scratch& scratch)
      : a_(args), table_(table), first_(first), n_(n), d_(args.d_head), scratch_(scratch) {
    seen_.fill({0, 0});
    scratch.segments.resize(std::max(scratch.segments.size(), a_.segments.size()));
    for (size_t s = 0; s < a_.segments.size(); ++s) look(a_.segments[s], scratch.segments[s]);
    // A line more than needed: rows a power of two apart would share a cache set.
    ld_ = any_.end - any_.begin + 16;
    scores_ = Scratch::grown(scratch.scores, n * ld_);
    q_ = Scratch::grown(scratch.q, kMaxTile * d_);
    out_ = Scratch::grown(scratch.out, kMaxTile * d_);
    block_ = Scratch::grown(scratch.block, kKeyBlock * d_);
  }

  void run() {
    for (int64_t i = 0; i < n_; ++i) std::copy_n(a_.q + offset(i, a_.ld_q), d_, q_ + i * d_);
    std::fill_n(out_, n_ * d_, 0.0f);
    for (const Visible& segment : segments()) {
      for (int64_t p = segment.any.begin; p < segment.any.end; p += kKeyBlock) score(segment, p);
    }
    for (int64_t i = 0; i < n_; ++i) normalise(i);
    for (const Visible& segment : segments()) {
      for (int64_t p = segment.any.begin; p < segment.any.end; p += kKeyBlock) gather(segment, p);
    }
    for (int64_t i = 0; i < n_; ++i) std::copy_n(out_ + i * d_, d_, a_.out + offset(i, a_.ld_out));
  }

 private:
  std::span<const Visible> segments() const {
    return {scratch_.segments.data(), a_.segments.size()};
  }

  void look(const KvSegment& segment, Visible& visible) {
    visible.blocks = segment.blocks;
    visible.any = {0, 0};
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t query = (first_ + i) / a_.n_heads;
      Range& row = visible.rows[static_cast<size_t>(i)];
      row = {segment.first[query], segment.last[query]};
      QUERN_CHECK(row.begin >= 0 && row.end <= a_.n_ctx);
      if (row.empty()) row = {0, 0};
      visible.any = unite(visible.any, row);
      Visible::Four& four = visible.fours[static_cast<size_t>(i / kFour)];
      if (i % kFour == 0) four = {row, row};
      four = {unite(four.any, row), intersect(four.all, row)};
      Range& seen = seen_[static_cast<size_t>(i)];
      QUERN_CHECK(seen.empty() || row.empty() || seen.end == row.begin);
      seen = unite(seen, row);
    }
    visible.any = {visible.any.begin / kKeyBlock * kKeyBlock, round_up(visible.any.end, kKeyBlock)};
    any_ = unite(any_, visible.any);
  }

  Range seen(int64_t i) const { return seen_[static_cast<size_t>(i)]; }
  int64_t offset(int64_t i, int64_t ld) const {
    return (first_ + i) / a_.n_heads * ld + (first_ + i) % a_.n_heads * d_;
  }
  float* score_at(int64_t i, int64_t p) { return scores_ + i * ld_ + (p - any_.begin); }

  // Scores come in units of kTurnedUnit positions. A four takes the units that some row sees, where
  // no other segment writes them; else each row takes its own.
  void score(const Visible& segment, int64_t p) {
    const Range block{p, p + kKeyBlock};
    const float* k = segment.blocks->keys(p / kKeyBlock, block_);
    for (int64_t i = 0; i < n_; i += kFour) {
      const int64_t count = std::min(kFour, n_ - i);
      const auto units = [&](Range seen) {
        seen = intersect(seen, block);
        if (seen.empty()) return Range{0, 0};
        return Range{seen.begin / kTurnedUnit * kTurnedUnit, round_up(seen.end, kTurnedUnit)};
      };
      const Range any = units(segment.fours[static_cast<size_t>(i / kFour)].any);
      bool is_one = true;
      for (int64_t r = i; a_.segments.size() > 1 && r < i + count; ++r) {
        is_one = is_one && units(segment.rows[static_cast<size_t>(r)]) == any;
      }
      if (is_one) {
        dot(k, block, any, i, count);
        continue;
      }
      for (int64_t r = i; r < i + count; ++r) {
        dot(k, block, units(segment.rows[static_cast<size_t>(r)]), r, 1);
      }
    }
  }

  void dot(const float* k, Range block, Range part, int64_t i, int64_t count) {
    if (part.empty()) return;
    table_.dot_turned(q_ + i * d_, d_, count, k + (part.begin - block.begin), kKeyBlock,
                      part.end - part.begin, d_, score_at(i, part.begin), ld_);
  }

  void normalise(int64_t i) {
    const int64_t n = seen(i).end - seen(i).begin;
    float* row = n > 0 ? score_at(i, seen(i).begin) : scores_;
    float scale = a_.scale;
    if (a_.soft_cap != 0) {
      table_.scale(scale, n, row);
      table_.soft_cap(a_.soft_cap, n, row);
      scale = 1;
    }
    table_.softmax(scale, n, row, a_.lse != nullptr ? a_.lse + first_ + i : nullptr);
    if (a_.weights == nullptr) return;
    float* weights = a_.weights + (first_ + i) * a_.n_ctx;
    std::fill_n(weights, a_.n_ctx, 0.0f);
    std::copy_n(row, n, weights + seen(i).begin);
  }

  // Adds positions `part` of a loaded block to `count` rows from i on.
  void add(const float* v, Range block, Range part, int64_t i, int64_t count) {
    if (part.empty()) return;
    table_.axpy_rows(score_at(i, part.begin), ld_, count, v + (part.begin - block.begin) * d_, d_,
                     part.end - part.begin, d_, out_ + i * d_, d_);
  }

  void gather(const Visible& segment, int64_t p) {
    const Range block{p, std::min(p + kKeyBlock, a_.n_ctx)};
    const float* v = segment.blocks->values(p / kKeyBlock, block_);
    for (int64_t i = 0; i < n_; i += kFour) {
      const int64_t count = std::min(kFour, n_ - i);
      const Visible::Four& four = segment.fours[static_cast<size_t>(i / kFour)];
      const Range any = intersect(four.any, block);
      Range common = intersect(four.all, block);
      if (common.empty()) common = {any.end, any.end};
      const auto add_ragged = [&](Range part) {
        if (part.empty()) return;
        for (int64_t r = i; r < i + count; ++r) {
          add(v, block, intersect(segment.rows[static_cast<size_t>(r)], part), r, 1);
        }
      };
      add_ragged({any.begin, common.begin});
      add(v, block, common, i, count);
      add_ragged({common.end, any.end});
    }
  }

  const AttendArgs& a_;
  const KernelTable& table_;
  int64_t first_, n_, d_;
  Scratch& scratch_;
  std::array<Range, kMaxTile> seen_;  // of all segments
  Range any_{0, 0};                   // whole blocks that hold what some row sees
  int64_t ld_;
  float *scores_, *q_, *out_, *block_;  // [n, ld], [n, d_head], [n, d_head], a block's scratch
};

}  // namespace

const float* StoredBlocks::keys(int64_t block, float* scratch) const {
  return load(keys_, block * kKeyBlock * d_head_, kKeyBlock * d_head_, scratch);
}

const float* StoredBlocks::values(int64_t block, float* scratch) const {
  const int64_t n = std::min(kKeyBlock, n_ctx_ - block * kKeyBlock);
  return load(values_, block * kKeyBlock * d_head_, n * d_head_, scratch);
}

const float* StoredBlocks::load(const void* store, int64_t first, int64_t n, float* scratch) const {
  const char* from = static_cast<const char*>(store) + first * dtype_bits(dtype_) / 8;
  if (dtype_ == DType::kF32) return reinterpret_cast<const float*>(from);
  QUERN_CHECK(dtype_ == DType::kF16 || dtype_ == DType::kBF16);
  (dtype_ == DType::kF16 ? kernels().f16_to_float : kernels().bf16_to_float)(from, n, scratch);
  return scratch;
}

void attend(const AttendArgs& args, const KernelTable& table) {
  thread_local Scratch scratch;
  const int64_t fitting = kTileScores / std::max<int64_t>(args.n_ctx, 1);
  const int64_t tile = std::clamp<int64_t>(fitting / kFour * kFour, kMinTile, kMaxTile);
  const int64_t n_rows = args.n_q * args.n_heads;
  for (int64_t i = 0; i < n_rows; i += tile) {
    Tile(args, table, i, std::min(tile, n_rows - i), scratch).run();
  }
}

}  // namespace quern
