// SPDX-License-Identifier: Apache-2.0
// Queries go in tiles that share every load of K and V: scores of the whole visible range by
// dot_tile, softmax by row, then weighted sums by axpy_rows. Positions come in blocks that stay in
// the first cache (stored halves become floats there). Where the queries of a tile see different
// ranges, the positions they all see go through the tile kernel and the ragged ends query by query;
// both add positions in ascending order, so the split is invisible in the result.
#include "kernels/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/checked.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

constexpr int64_t kBlock = 64;                  // positions at once: 32 KiB of floats at d_head 128
constexpr int64_t kTileScores = 131072;         // scores of a tile stay in half of a second cache
constexpr int64_t kMinTile = 8, kMaxTile = 32;  // a group of heads meets its K and V once

struct Range {
  int64_t begin, end;
};

Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Scratch outlives the call, so that a step allocates nothing once it has seen its longest context.
struct Scratch {
  AlignedVector<float> scores, rows;
  static float* grown(AlignedVector<float>& buffer, int64_t n) {
    if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
    return buffer.data();
  }
};

struct FloatRows {
  const float* data;
  int64_t ld;
};

// Rows [block.begin, block.end) as floats.
FloatRows load_rows(const KvRows& rows, Range block, int64_t d_head, const KernelTable& table,
                    Scratch& scratch) {
  const char* start = static_cast<const char*>(rows.data) +
                      block.begin * rows.stride * (dtype_bits(rows.dtype) / 8);
  if (rows.dtype == DType::kF32) return {reinterpret_cast<const float*>(start), rows.stride};
  QUERN_CHECK(rows.dtype == DType::kF16 || rows.dtype == DType::kBF16);
  const auto convert = rows.dtype == DType::kF16 ? table.f16_to_float : table.bf16_to_float;
  float* converted = Scratch::grown(scratch.rows, kBlock * d_head);
  const int64_t n = block.end - block.begin;
  if (rows.stride == d_head) {
    convert(start, n * d_head, converted);
    return {converted, d_head};
  }
  for (int64_t p = 0; p < n; ++p) {
    convert(start + p * rows.stride * 2, d_head, converted + p * d_head);
  }
  return {converted, d_head};
}

// A tile of queries [first_query, first_query + n) and what they see.
class Tile {
 public:
  Tile(const AttendArgs& args, const KernelTable& table, int64_t first_query, int64_t n,
       Scratch& scratch)
      : a_(args), table_(table), q0_(first_query), n_(n), scratch_(scratch) {
    any_ = {args.n_ctx, 0};
    all_ = {0, args.n_ctx};
    for (int64_t i = 0; i < n; ++i) {
      const Range seen = visible(i);
      all_ = intersect(all_, seen);
      if (seen.begin >= seen.end) continue;
      any_ = {std::min(any_.begin, seen.begin), std::max(any_.end, seen.end)};
    }
    // A line more than needed: rows a power of two apart would share a cache set.
    ld_ = round_up(any_.end > any_.begin ? any_.end - any_.begin : 1, int64_t{16}) + 16;
    scores_ = Scratch::grown(scratch.scores, n * ld_);
  }

  void run() {
    for (int64_t p = any_.begin; p < any_.end; p += kBlock)
      score({p, std::min(p + kBlock, any_.end)});
    for (int64_t i = 0; i < n_; ++i) normalise(i);
    for (int64_t p = any_.begin; p < any_.end; p += kBlock)
      gather({p, std::min(p + kBlock, any_.end)});
  }

 private:
  Range visible(int64_t i) const {
    const Range seen{a_.first != nullptr ? a_.first[q0_ + i] : 0,
                     a_.last != nullptr ? a_.last[q0_ + i] : a_.n_ctx};
    QUERN_CHECK(seen.begin >= 0 && seen.end <= a_.n_ctx);
    return seen;
  }
  float* score_at(int64_t i, int64_t p) { return scores_ + i * ld_ + (p - any_.begin); }

  void score(Range block) {
    const FloatRows k = load_rows(a_.k, block, a_.d_head, table_, scratch_);
    table_.dot_tile(a_.q + q0_ * a_.ld_q, a_.ld_q, n_, k.data, k.ld, block.end - block.begin,
                    a_.d_head, score_at(0, block.begin), ld_);
  }

  void normalise(int64_t i) {
    const Range seen = visible(i);
    const int64_t n = std::max<int64_t>(seen.end - seen.begin, 0);
    float lse = -std::numeric_limits<float>::infinity();
    if (n > 0) {
      float* row = score_at(i, seen.begin);
      table_.scale(a_.scale, n, row);
      if (a_.soft_cap != 0) table_.soft_cap(a_.soft_cap, n, row);
      lse = table_.softmax(n, row);
    }
    if (a_.lse != nullptr) a_.lse[q0_ + i] = lse;
    std::fill_n(out(i), a_.d_head, 0.0f);
    if (a_.weights == nullptr) return;
    float* weights = a_.weights + (q0_ + i) * a_.ld_weights;
    std::fill_n(weights, a_.n_ctx, 0.0f);
    if (n > 0) std::copy_n(score_at(i, seen.begin), n, weights + seen.begin);
  }

  float* out(int64_t i) { return a_.out + (q0_ + i) * a_.ld_out; }

  // Adds positions `part` of a loaded block to `count` queries from i on.
  void add(FloatRows v, Range block, Range part, int64_t i, int64_t count) {
    if (part.begin >= part.end) return;
    table_.axpy_rows(score_at(i, part.begin), ld_, count,
                     v.data + (part.begin - block.begin) * v.ld, v.ld, part.end - part.begin,
                     a_.d_head, out(i), a_.ld_out);
  }

  void gather(Range block) {
    const FloatRows v = load_rows(a_.v, block, a_.d_head, table_, scratch_);
    Range common = intersect(block, all_);
    if (common.begin >= common.end) common = {block.end, block.end};
    for (int64_t i = 0; i < n_; ++i) {
      add(v, block, intersect(visible(i), {block.begin, common.begin}), i, 1);
    }
    add(v, block, common, 0, n_);
    for (int64_t i = 0; i < n_; ++i) {
      add(v, block, intersect(visible(i), {common.end, block.end}), i, 1);
    }
  }

  const AttendArgs& a_;
  const KernelTable& table_;
  int64_t q0_, n_;
  Scratch& scratch_;
  Range any_, all_;  // positions that some query, that every query sees
  int64_t ld_;
  float* scores_;  // [n, ld]
};

}  // namespace

void attend(const AttendArgs& args, const KernelTable& table) {
  thread_local Scratch scratch;
  const int64_t fitting = kTileScores / std::max<int64_t>(args.n_ctx, 1);
  const int64_t tile = std::clamp<int64_t>(fitting / 4 * 4, kMinTile, kMaxTile);
  for (int64_t i = 0; i < args.n_q; i += tile) {
    Tile(args, table, i, std::min(tile, args.n_q - i), scratch).run();
  }
}

}  // namespace quern
