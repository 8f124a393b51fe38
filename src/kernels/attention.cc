// SPDX-License-Identifier: Apache-2.0
// Rows are the heads of a group, query by query. They go in tiles that share every load of K and V:
// scores of the whole visible range, softmax by row, then weighted sums of rows of V. Positions
// come in blocks that stay in the first cache, where stored halves become floats once for all rows.
// Of a block of turned keys, a vector holds the scores of a row side by side: no sum crosses a
// register. Within a block, rows go by fours, as the kernels take them. Where the rows of a four
// see different ranges, the positions they all see go together and the ragged ends row by row; both
// add positions in ascending order, so the split is invisible in the result.
#include "kernels/attention.h"

#include <algorithm>
#include <array>
#include <limits>

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
};

Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

Range unite(Range a, Range b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// Scratch outlives the call, so that a step allocates nothing once it has seen its longest context.
struct Scratch {
  AlignedVector<float> scores, q, out, block;
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
    for (int64_t i = 0; i < n; ++i) {
      const int64_t query = (first + i) / a_.n_heads;
      Range& seen = seen_[static_cast<size_t>(i)];
      seen = {a_.first != nullptr ? a_.first[query] : 0,
              a_.last != nullptr ? a_.last[query] : a_.n_ctx};
      QUERN_CHECK(seen.begin >= 0 && seen.end <= a_.n_ctx);
      if (seen.empty()) seen = {0, 0};
      any_ = unite(any_, seen);
      Four& four = fours_[static_cast<size_t>(i / kFour)];
      if (i % kFour == 0) four = {seen, seen};
      four = {unite(four.any, seen), intersect(four.all, seen)};
    }
    any_ = {any_.begin / kKeyBlock * kKeyBlock, round_up(any_.end, kKeyBlock)};
    // A line more than needed: rows a power of two apart would share a cache set.
    ld_ = any_.end - any_.begin + 16;
    scores_ = Scratch::grown(scratch.scores, n * ld_);
    q_ = Scratch::grown(scratch.q, kMaxTile * d_);
    out_ = Scratch::grown(scratch.out, kMaxTile * d_);
  }

  void run() {
    for (int64_t i = 0; i < n_; ++i) std::copy_n(a_.q + offset(i, a_.ld_q), d_, q_ + i * d_);
    std::fill_n(out_, n_ * d_, 0.0f);
    for (int64_t p = any_.begin; p < any_.end; p += kKeyBlock) score({p, p + kKeyBlock});
    for (int64_t i = 0; i < n_; ++i) normalise(i);
    for (int64_t p = any_.begin; p < any_.end; p += kKeyBlock) {
      gather({p, std::min(p + kKeyBlock, a_.n_ctx)});
    }
    for (int64_t i = 0; i < n_; ++i) std::copy_n(out_ + i * d_, d_, a_.out + offset(i, a_.ld_out));
  }

 private:
  struct Four {
    Range any, all;  // positions that some row, that every row sees
  };
  Range seen(int64_t i) const { return seen_[static_cast<size_t>(i)]; }
  int64_t offset(int64_t i, int64_t ld) const {
    return (first_ + i) / a_.n_heads * ld + (first_ + i) % a_.n_heads * d_;
  }
  float* score_at(int64_t i, int64_t p) { return scores_ + i * ld_ + (p - any_.begin); }

  // Positions of a block as floats, turned or not.
  const float* load(const void* source, Range block) {
    const char* start =
        static_cast<const char*>(source) + block.begin * d_ * dtype_bits(a_.dtype) / 8;
    if (a_.dtype == DType::kF32) return reinterpret_cast<const float*>(start);
    QUERN_CHECK(a_.dtype == DType::kF16 || a_.dtype == DType::kBF16);
    const auto convert = a_.dtype == DType::kF16 ? table_.f16_to_float : table_.bf16_to_float;
    float* converted = Scratch::grown(scratch_.block, kKeyBlock * d_);
    convert(start, (block.end - block.begin) * d_, converted);
    return converted;
  }

  void score(Range block) {
    const float* k = load(a_.k, block);
    for (int64_t i = 0; i < n_; i += kFour) {
      const int64_t count = std::min(kFour, n_ - i);
      Range any = intersect(fours_[static_cast<size_t>(i / kFour)].any, block);
      if (any.empty()) continue;
      any = {any.begin / kTurnedUnit * kTurnedUnit, round_up(any.end, kTurnedUnit)};
      table_.dot_turned(q_ + i * d_, d_, count, k + (any.begin - block.begin), kKeyBlock,
                        any.end - any.begin, d_, score_at(i, any.begin), ld_);
    }
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

  void gather(Range block) {
    const float* v = load(a_.v, block);
    for (int64_t i = 0; i < n_; i += kFour) {
      const int64_t count = std::min(kFour, n_ - i);
      const Four& four = fours_[static_cast<size_t>(i / kFour)];
      const Range any = intersect(four.any, block);
      Range common = intersect(four.all, block);
      if (common.empty()) common = {any.end, any.end};
      const auto add_ragged = [&](Range part) {
        if (part.empty()) return;
        for (int64_t r = i; r < i + count; ++r) add(v, block, intersect(seen(r), part), r, 1);
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
  std::array<Range, kMaxTile> seen_;
  std::array<Four, kMaxTile / kFour> fours_;
  Range any_{0, 0};  // whole blocks that hold what some row sees
  int64_t ld_;
  float *scores_, *q_, *out_;  // [n, ld], [n, d_head], [n, d_head]
};

}  // namespace

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
