// SPDX-License-Identifier: Apache-2.0
// Attention of some queries over the positions of one KV head:
//
//   s[i, p] = cap( scale * dot(q_i, k_p) )   for first_i <= p < last_i
//   out_i   = sum_p softmax(s[i, :])_p v_p
//
// Positions come from one or more segments, each with a range of its own for every query.
// A query's result has the same bits however queries are batched, however its positions are cut
// into segments, and whatever the threads and the ISA: scores are `dot`, the softmax runs over the
// visible range alone, and every element of out gathers positions in ascending order by fused
// multiply-add, starting from zero.
// Serial; callers share out heads and tiles of queries among threads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "tensor/dtype.h"

namespace quern {

// Keys are read turned, in blocks of this many positions.
inline constexpr int64_t kKeyBlock = 64;

// Keys and values of one KV head, block by block: in the store itself or written to `scratch`
// [kKeyBlock * d_head].
class KvBlocks {
 public:
  virtual ~KvBlocks() = default;
  virtual const float* keys(int64_t block, float* scratch) const = 0;    // [d_head, kKeyBlock]
  virtual const float* values(int64_t block, float* scratch) const = 0;  // [kKeyBlock, d_head]
};

// What is stored as attention reads it, floats or halves: keys [blocks, d_head, kKeyBlock], values
// [n_ctx, d_head].
class StoredBlocks final : public KvBlocks {
 public:
  StoredBlocks(const void* keys, const void* values, DType dtype, int64_t n_ctx, int64_t d_head)
      : keys_(keys), values_(values), dtype_(dtype), n_ctx_(n_ctx), d_head_(d_head) {}
  const float* keys(int64_t block, float* scratch) const override;
  const float* values(int64_t block, float* scratch) const override;

 private:
  const float* load(const void* store, int64_t first, int64_t n, float* scratch) const;
  const void *keys_, *values_;
  DType dtype_;  // kF32, kF16 or kBF16
  int64_t n_ctx_, d_head_;
};

// Positions [first[i], last[i]) are visible to query i. Segments follow one another: where two are
// visible to a query, the later begins where the earlier ends, at a multiple of kKeyBlock.
struct KvSegment {
  const KvBlocks* blocks = nullptr;
  const int64_t* first = nullptr;  // [n_q]
  const int64_t* last = nullptr;   // [n_q]
};

struct AttendArgs {
  // Head h of query i starts at q + i * ld_q + h * d_head; the heads are some that read this KV
  // head, and see the same positions.
  const float* q = nullptr;
  int64_t ld_q = 0;
  int64_t n_q = 0, n_heads = 1;
  int64_t d_head = 0;

  std::span<const KvSegment> segments;
  int64_t n_ctx = 0;  // no position from here on is visible

  float scale = 1;
  float soft_cap = 0;  // 0: none; else cap * tanh(score / cap)

  float* out = nullptr;  // as q; zeros for a query that sees nothing
  int64_t ld_out = 0;
  float* lse = nullptr;      // [n_q, n_heads] or null: log sum exp of the scores; -inf for none
  float* weights = nullptr;  // [n_q, n_heads, n_ctx] or null: the softmax, zero where not visible
};

void attend(const AttendArgs& args, const KernelTable& table = kernels());

}  // namespace quern
