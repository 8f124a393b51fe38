// SPDX-License-Identifier: Apache-2.0
// Rows are the heads of a group, query by query. They go in tiles that share every load of K and V,
// and a tile takes one span of positions after the other: scores of what is visible, softmax by
// row, then weighted sums of rows of V. The softmax is powers of scores below the row's largest,
// which are taken when a block of V is there, and their sum divides the result. Positions come in
// blocks that stay in the first cache. Of a block of turned keys, a vector holds the scores of a
// row side by side, and both products are sums of rows. Halves become floats in the product itself
// where rows are few, and before it for many; the bits are the same.
// Within a block, rows go by groups. Where the rows of a group see different ranges, the positions
// they all see go together and the ragged ends row by row; both add positions in ascending order,
// so the split is invisible in the result, as are segments.
// Coded blocks take rows as whole numbers (level_block.h), always a whole block: what a row does
// not see of it has no weight. Where a factor stands behind all of them, it meets a span's
// queries once, and its sums once (block_factor.h).
#include "kernels/attention.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/attention_pairs.h"
#include "kernels/attention_scratch.h"
#include "kernels/attention_tiles.h"
#include "kernels/vec_math.h"

namespace quern {
namespace {

constexpr int64_t kFewRows = 16;    // up to here halves are read as they are
constexpr int64_t kScoreUnit = 16;  // positions
constexpr size_t kFewJobs = 16;     // up to here their spans are shared out
constexpr int64_t kLanes = 16;      // of sums of weights

static_assert(kKvSpan % kKeyBlock == 0);

float sum_of_lanes(const float* lanes) {
  float sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  for (int64_t h = kLanes / 2; h > 0; h /= 2) {
    for (int64_t l = 0; l < h; ++l) sums[l] += sums[l + h];
  }
  return sums[0];
}

// A tile's rows over one span.
class SpanOfTile {
 public:
  SpanOfTile(const AttentionTile& tile, int64_t span, const KernelTable& table)
      : tile_(tile),
        a_(*tile.args),
        table_(table),
        span_{span * kKvSpan, (span + 1) * kKvSpan},
        n_(tile.n),
        d_(a_.d_head),
        scratch_(thread_scratch()) {
    seen_.fill({0, 0});
    scratch_.segments.resize(std::max(scratch_.segments.size(), a_.segments.size()));
    for (size_t s = 0; s < a_.segments.size(); ++s) look(a_.segments[s], scratch_.segments[s]);
    // A line more than needed: rows a power of two apart would share a cache set.
    ld_ = (blocks_.end - blocks_.begin) * kKeyBlock + 16;
    scores_ = grown(scratch_.scores, n_ * ld_);
    q_ = grown(scratch_.q, kMaxTile * d_);
    sums_ = grown(scratch_.sums, kMaxTile * kLanes);
    block_ = scratch_.block.view(d_);
  }

  // out [n, d_head]; lse of row i at i * ld_lse.
  void run(float* out, float* lse, int64_t ld_lse) {
    out_ = out;
    for (int64_t i = 0; i < n_; ++i) std::copy_n(a_.q + tile_.offset(i, a_.ld_q), d_, q_ + i * d_);
    if (a_.segments[0].blocks->is_paired()) return run_paired(lse, ld_lse);
    std::fill_n(out, n_ * d_, 0.0f);
    std::fill_n(scores_, n_ * ld_, 0.0f);
    for (const Visible& segment : segments()) {
      queries_are_rounded_ = queries_have_factor_ = false;
      for (int64_t b = segment.any.begin; b < segment.any.end; ++b) score(segment, b);
    }
    for (int64_t i = 0; i < n_; ++i) tops_[static_cast<size_t>(i)] = find_top(i);
    std::fill_n(sums_, n_ * kLanes, 0.0f);
    for (const Visible& segment : segments()) {
      for (int64_t b = segment.any.begin; b < segment.any.end; ++b) gather(segment, b);
      add_factored_sums();
    }
    for (int64_t i = 0; i < n_; ++i) lse[i * ld_lse] = finish(i);
  }

 private:
  std::span<const Visible> segments() const {
    return {scratch_.segments.data(), a_.segments.size()};
  }

  void run_paired(float* lse, int64_t ld_lse) const {
    QUERN_CHECK(a_.segments.size() == 1);
    std::array<int64_t, kMaxTile> first, last;
    for (size_t i = 0; i < static_cast<size_t>(n_); ++i) {
      first[i] = seen_[i].begin;
      last[i] = seen_[i].end;
    }
    PairedSpan span{a_.segments[0].blocks, n_, first.data(), last.data(), q_, d_};
    span.scale = a_.scale;
    span.soft_cap = a_.soft_cap;
    span.weights = a_.weights == nullptr ? nullptr : a_.weights + tile_.first * a_.n_ctx;
    span.ld_weights = a_.n_ctx;
    attend_paired(span, table_, out_, lse, ld_lse);
  }

  void look(const KvSegment& segment, Visible& visible) {
    visible.blocks = segment.blocks;
    Range any{0, 0};
    for (int64_t i = 0; i < n_; ++i) {
      const Range row = intersect(tile_.seen(i, segment), span_);
      visible.rows[static_cast<size_t>(i)] = row;
      any = unite(any, row);
      Visible::Group& group = visible.groups[static_cast<size_t>(i / kGroup)];
      if (i % kGroup == 0) group = {row, row};
      group = {unite(group.any, row), intersect(group.all, row)};
      Range& seen = seen_[static_cast<size_t>(i)];
      seen = unite(seen, row);
    }
    visible.any = cover(any, kKeyBlock);
    blocks_ = unite(blocks_, visible.any);
  }

  float* score_at(int64_t i, int64_t p) {
    return scores_ + i * ld_ + (p - blocks_.begin * kKeyBlock);
  }

  // Scores come in units of positions. A group takes the units that some row sees, where no other
  // segment adds to them; else each row takes its own.
  void score(const Visible& segment, int64_t b) {
    const Range block{b * kKeyBlock, (b + 1) * kKeyBlock};
    const KvOperand k = operand(segment.blocks->keys(b, block_), d_ * kKeyBlock);
    if (k.levels != nullptr) return score_levels(segment, b, k);
    for (int64_t i = 0; i < n_; i += kGroup) {
      const int64_t count = std::min(kGroup, n_ - i);
      const auto units = [&](Range seen) {
        seen = intersect(seen, block);
        if (seen.empty()) return Range{0, 0};
        return Range{seen.begin / kScoreUnit * kScoreUnit, round_up(seen.end, kScoreUnit)};
      };
      const Range any = units(segment.groups[static_cast<size_t>(i / kGroup)].any);
      bool is_one = true;
      for (int64_t r = i; a_.segments.size() > 1 && r < i + count; ++r) {
        is_one = is_one && units(segment.rows[static_cast<size_t>(r)]) == any;
      }
      for (int64_t r = i; r < i + count; r += is_one ? count : 1) {
        const Range part = is_one ? any : units(segment.rows[static_cast<size_t>(r)]);
        if (part.empty()) continue;
        add_rows(q_ + r * d_, d_, is_one ? count : 1, k, part.begin - block.begin, kKeyBlock, d_,
                 part.end - part.begin, score_at(r, part.begin), ld_);
      }
    }
  }

  // Calls f(first, count) for the rows that are some, at most kGroup at once.
  template <class Is, class F>
  void for_rows_that(const Is& is, const F& f) const {
    for (int64_t first = 0; first < n_;) {
      int64_t end = first;
      while (end < n_ && end - first < kGroup && is(static_cast<size_t>(end))) ++end;
      if (end > first) f(first, end - first);
      first = std::max(end, first + 1);
    }
  }
  // For those that see something of a block.
  template <class F>
  void for_rows(const Visible& segment, int64_t b, const F& f) const {
    const Range block{b * kKeyBlock, (b + 1) * kKeyBlock};
    for_rows_that([&](size_t i) { return !intersect(segment.rows[i], block).empty(); }, f);
  }

  // Queries as levels before this factor meet them.
  const float* queries_with(const BlockFactor* factor) {
    if (factor == nullptr) return q_;
    float* product = grown(scratch_.factor_q, kMaxTile * d_);
    if (!queries_have_factor_) {
      std::fill_n(product, n_ * d_, 0.0f);
      add_product(*factor, factor->turned, q_, n_, d_, product, table_);
    }
    queries_have_factor_ = true;
    return product;
  }

  // Queries are rounded once, unless scales of the block go into them.
  void score_levels(const Visible& segment, int64_t b, const KvOperand& keys) {
    const LevelBlock& k = *keys.levels;
    const bool is_once = k.share == LevelBlock::Share::kDown;
    const float* q = queries_with(keys.factor);
    LevelRows queries{};
    if (is_once) {
      queries = scratch_.queries.view(k, n_);
      if (!queries_are_rounded_) table_.round_level_rows(q, d_, n_, k, queries);
      queries_are_rounded_ = true;
    }
    for_rows(segment, b, [&](int64_t first, int64_t count) {
      LevelRows rows = scratch_.rows.view(k, kGroup);
      if (is_once) {
        rows = queries.from(first, k);
      } else {
        table_.round_level_rows(q + first * d_, d_, count, k, rows);
      }
      float* scores = score_at(first, b * kKeyBlock);
      table_.level_dot(k, rows, count, scores, ld_);
      if (keys.added != nullptr) {
        add_correction(*keys.added, q + first * d_, d_, count, scores, ld_, table_);
      }
    });
  }

  // Of some rows that see something of a block.
  struct BlockScores {
    ScoreRows rows;
    std::array<int32_t, kGroup> first, last;
  };
  void block_scores(const Visible& segment, int64_t b, int64_t first, int64_t count,
                    BlockScores& scores) {
    const Range block{b * kKeyBlock, (b + 1) * kKeyBlock};
    for (int64_t r = 0; r < count; ++r) {
      const Range seen = intersect(segment.rows[static_cast<size_t>(first + r)], block);
      scores.first[static_cast<size_t>(r)] = static_cast<int32_t>(seen.begin - block.begin);
      scores.last[static_cast<size_t>(r)] = static_cast<int32_t>(seen.end - block.begin);
    }
    scores.rows = {score_at(first, block.begin), ld_, kKeyBlock};
    scores.rows.first = scores.first.data();
    scores.rows.last = scores.last.data();
    scores.rows.to_exponent = to_exponent();
    scores.rows.tops = tops_.data() + first;
    scores.rows.sums = sums_ + first * kLanes;
  }

  // Where rows gather values that are without their factor, until add_factored_sums.
  float* sums_before(const BlockFactor* factor) {
    if (factor == nullptr) return out_;
    float* sums = grown(scratch_.factor_out, kMaxTile * d_);
    if (factor_ == nullptr) {
      std::fill_n(sums, n_ * d_, 0.0f);
      have_factor_.fill(false);
    }
    factor_ = factor;
    return sums;
  }
  void add_factored_sums() {
    if (factor_ == nullptr) return;
    for_rows_that([&](size_t i) { return have_factor_[i]; },
                  [&](int64_t first, int64_t count) {
                    const float* sums = scratch_.factor_out.data() + first * d_;
                    add_product(*factor_, factor_->matrix, sums, count, d_, out_ + first * d_,
                                table_);
                  });
    factor_ = nullptr;
  }

  void gather_levels(const Visible& segment, int64_t b, const KvOperand& values) {
    const LevelBlock& v = *values.levels;
    float* out = sums_before(values.factor);
    for_rows(segment, b, [&](int64_t first, int64_t count) {
      if (values.factor != nullptr) std::fill_n(have_factor_.begin() + first, count, true);
      BlockScores scores;
      block_scores(segment, b, first, count, scores);
      const float* weights = scores.rows.x;
      const LevelRows rows = scratch_.rows.view(v, kGroup);
      if (values.added == nullptr && a_.weights == nullptr) {
        table_.round_exp_rows(scores.rows, count, v, rows);
      } else {
        table_.exp_rows(scores.rows, count);
        table_.round_level_rows(weights, ld_, count, v, rows);
      }
      table_.level_dot(v, rows, count, out + first * d_, d_);
      if (values.added != nullptr) {
        add_correction(*values.added, weights, ld_, count, out + first * d_, d_, table_);
      }
    });
  }

  // Many rows read floats; few read what there is.
  KvOperand operand(const KvOperand& stored, int64_t n) const {
    if (stored.levels != nullptr) return stored;
    if (stored.halves != nullptr && n_ <= kFewRows) return stored;
    return {.floats = floats_of(stored, n, block_.floats, table_)};
  }

  // y += a v, v from element `first` of an operand on.
  void add_rows(const float* a, int64_t ld_a, int64_t n_y, const KvOperand& v, int64_t first,
                int64_t ld_v, int64_t n_v, int64_t n, float* y, int64_t ld_y) const {
    if (v.halves != nullptr) {
      const auto* halves = static_cast<const char*>(v.halves) + 2 * first;
      table_.axpy_rows_half(a, ld_a, n_y, halves, ld_v, n_v, n, y, ld_y);
    } else {
      table_.axpy_rows(a, ld_a, n_y, v.floats + first, ld_v, n_v, n, y, ld_y);
    }
  }

  float to_exponent() const { return (a_.soft_cap != 0 ? 1 : a_.scale) * vec_math::kLog2E; }

  // The largest score of a row, as an exponent of two; where all are -inf, or there is none, what
  // makes all weights zero.
  float find_top(int64_t i) {
    const Range seen = seen_[static_cast<size_t>(i)];
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (seen.empty()) return kInfinity;
    const int64_t n = seen.end - seen.begin;
    float* row = score_at(i, seen.begin);
    if (a_.soft_cap != 0) {
      table_.scale(a_.scale, n, row);
      table_.soft_cap(a_.soft_cap, n, row);
    }
    const float top = table_.max(row, n);
    return top == -kInfinity ? kInfinity : top * to_exponent();
  }

  // Divides a row's result by the sum of its weights. The log of the sum of exponentials.
  float finish(int64_t i) {
    const float sum = sum_of_lanes(sums_ + i * kLanes), top = tops_[static_cast<size_t>(i)];
    const float share = sum == 0 ? 0 : 1 / sum;
    table_.scale(share, d_, out_ + i * d_);
    const Range seen = seen_[static_cast<size_t>(i)];
    if (a_.weights != nullptr && !seen.empty()) {
      float* weights = a_.weights + (tile_.first + i) * a_.n_ctx + seen.begin;
      std::copy_n(score_at(i, seen.begin), seen.end - seen.begin, weights);
      table_.scale(share, seen.end - seen.begin, weights);
    }
    return sum == 0 ? -top : top * vec_math::kLn2High + log_of(sum);
  }

  // Adds positions `part` of a block to `count` rows from i on.
  void add(const KvOperand& v, Range block, Range part, int64_t i, int64_t count) {
    if (part.empty()) return;
    add_rows(score_at(i, part.begin), ld_, count, v, (part.begin - block.begin) * d_, d_,
             part.end - part.begin, d_, out_ + i * d_, d_);
  }

  void gather(const Visible& segment, int64_t b) {
    const Range block{b * kKeyBlock, std::min((b + 1) * kKeyBlock, a_.n_ctx)};
    const KvOperand v = operand(segment.blocks->values(b, block_), (block.end - block.begin) * d_);
    if (v.levels != nullptr) return gather_levels(segment, b, v);
    for_rows(segment, b, [&](int64_t first, int64_t count) {
      BlockScores scores;
      block_scores(segment, b, first, count, scores);
      table_.exp_rows(scores.rows, count);
    });
    for (int64_t i = 0; i < n_; i += kGroup) {
      const int64_t count = std::min(kGroup, n_ - i);
      const Visible::Group& group = segment.groups[static_cast<size_t>(i / kGroup)];
      const Range any = intersect(group.any, block);
      Range common = intersect(group.all, block);
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

  const AttentionTile& tile_;
  const AttendArgs& a_;
  const KernelTable& table_;
  Range span_;  // positions
  int64_t n_, d_;
  AttentionScratch& scratch_;
  std::array<Range, kMaxTile> seen_;  // of all segments
  std::array<float, kMaxTile> tops_;
  Range blocks_{0, 0};  // that hold what some row sees
  int64_t ld_;
  float *scores_, *q_, *sums_, *out_ = nullptr;  // [n, ld], [n, d_head], [n, kLanes], [n, d_head]
  KvScratch block_;
  bool queries_are_rounded_ = false, queries_have_factor_ = false;  // for the segment
  const BlockFactor* factor_ = nullptr;     // of a segment's values, of which some rows
  std::array<bool, kMaxTile> have_factor_;  // have gathered sums that wait for it
};

// A tile's results from those of its spans.
void merge(const AttentionTile& tile, const float* parts, float* lse, const KernelTable& table) {
  const AttendArgs& a = *tile.args;
  const int64_t n_spans = tile.n_spans(), d = a.d_head;
  for (int64_t i = 0; i < tile.n; ++i) {
    // Which spans others see must not show.
    const Range seen = tile.seen(i), spans = cover(seen, kKvSpan);
    const int64_t first = spans.begin - tile.spans.begin, n = spans.end - spans.begin;
    float* shares = lse + i * n_spans + first;
    float* out = a.out + tile.offset(i, a.ld_out);
    float* total = a.lse != nullptr ? a.lse + tile.first + i : nullptr;
    std::fill_n(out, d, 0.0f);
    if (a.weights != nullptr) {
      float* weights = a.weights + (tile.first + i) * a.n_ctx;
      std::fill_n(weights, seen.begin, 0.0f);
      std::fill_n(weights + seen.end, a.n_ctx - seen.end, 0.0f);
    }
    if (n <= 0) {
      if (total != nullptr) *total = -std::numeric_limits<float>::infinity();
      continue;
    }
    table.softmax(1, n, shares, total);
    table.axpy_rows(shares, n, 1, parts + (first * tile.n + i) * d, tile.n * d, n, d, out, d);
    for (int64_t s = 0; s < n && a.weights != nullptr; ++s) {
      const int64_t span = (spans.begin + s) * kKvSpan;
      const Range part = intersect(seen, {span, span + kKvSpan});
      table.scale(shares[s], part.end - part.begin,
                  a.weights + (tile.first + i) * a.n_ctx + part.begin);
    }
  }
}

void attend_tile(const AttentionTile& tile, const KernelTable& table) {
  AttentionScratch& scratch = thread_scratch();
  float* parts = grown(scratch.parts, tile.parts_size());
  float* lse = grown(scratch.lse, tile.lse_size());
  for (int64_t s = 0; s < tile.n_spans(); ++s) {
    SpanOfTile(tile, tile.spans.begin + s, table)
        .run(parts + s * tile.n * tile.args->d_head, lse + s, tile.n_spans());
  }
  merge(tile, parts, lse, table);
}

// Every span of every tile is a piece of work.
void attend_spans(const std::vector<AttentionTile>& tiles, const KernelTable& table) {
  struct Piece {
    size_t tile;
    int64_t span;
  };
  std::vector<Piece> pieces;
  std::vector<int64_t> parts_at, lse_at;  // of each tile
  int64_t n_parts = 0, n_lse = 0;
  for (size_t t = 0; t < tiles.size(); ++t) {
    parts_at.push_back(n_parts);
    lse_at.push_back(n_lse);
    n_parts += tiles[t].parts_size();
    n_lse += tiles[t].lse_size();
    for (int64_t s = 0; s < tiles[t].n_spans(); ++s) pieces.push_back({t, s});
  }
  float* parts = grown(thread_scratch().parts, n_parts);
  float* lse = grown(thread_scratch().lse, n_lse);
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [t, s] = pieces[static_cast<size_t>(i)];
      const AttentionTile& tile = tiles[t];
      SpanOfTile(tile, tile.spans.begin + s, table)
          .run(parts + parts_at[t] + s * tile.n * tile.args->d_head, lse + lse_at[t] + s,
               tile.n_spans());
    }
  });
  for (size_t t = 0; t < tiles.size(); ++t) {
    merge(tiles[t], parts + parts_at[t], lse + lse_at[t], table);
  }
}

}  // namespace

void attend(const AttendArgs& args, const KernelTable& table) {
  for (const AttentionTile& tile : tiles_of({&args, 1})) attend_tile(tile, table);
}

void attend(std::span<const AttendArgs> jobs, const KernelTable& table) {
  const std::vector<AttentionTile> tiles = tiles_of(jobs);
  if (tiles.size() <= kFewJobs) return attend_spans(tiles, table);
  parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attend_tile(tiles[static_cast<size_t>(i)], table);
  });
}

}  // namespace quern
