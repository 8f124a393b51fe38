// SPDX-License-Identifier: Apache-2.0
// Attention of some queries over the positions of one KV head:
//
//   s[i, p] = cap( scale * dot(q_i, k_p) )   for first_i <= p < last_i
//   out_i   = sum_p softmax(s[i, :])_p v_p
//
// Positions come from one or more segments, each with a range of its own for every query. They are
// taken in spans of kKvSpan, cut at multiples of it. Of a span by itself a query has a result and
// the log of its sum of exponentials; the whole is the sum of these results by the softmax of these
// logs, in ascending order (FlashDecoding, 2023). So threads can share one long context.
//
// A query's result has the same bits however queries are batched and whatever the threads and the
// ISA. Of keys and values that are floats or halves, a score gathers channels and a result gathers
// positions in ascending order by fused multiply-add, starting from zero; and the softmax of a span
// runs over the visible range alone. Keys and values that are bfloat16 meet queries and weights
// that are rounded to it, in the order of kernels/pair_product.h: there the tiles of AMX serve.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/block_correction.h"
#include "kernels/block_factor.h"
#include "kernels/kernels.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace quern {

// Keys are read turned, in blocks of this many positions.
inline constexpr int64_t kKeyBlock = 64;
// Positions whose scores are taken together, a multiple of kKeyBlock: scores of a group of heads
// stay in the first cache.
inline constexpr int64_t kKvSpan = 1024;

// A block of keys [d_head, kKeyBlock] or of values [kKeyBlock, d_head], in the form that its store
// has: one of the first three is set.
struct KvOperand {
  const float* floats = nullptr;
  const void* halves = nullptr;
  const LevelBlock* levels = nullptr;
  const BlockCorrection* added = nullptr;  // to levels; or null
  const BlockFactor* factor = nullptr;     // behind levels and what is added; or null
  const uint16_t* pairs = nullptr;         // as kernels/pair_product.h reads them
};

// Memory for one block, where its store has to write what is read.
struct KvScratch {
  float* floats = nullptr;                      // [kKeyBlock * d_head]
  uint8_t* levels = nullptr;                    // [kKeyBlock * d_head]
  float *scales = nullptr, *centres = nullptr;  // [kKeyBlock * d_head / 16]
  LevelBlock* block = nullptr;                  // of the three
  float* added = nullptr;                       // [2 kKeyBlock d_head + 32 (kKeyBlock + d_head)]
  uint16_t* places = nullptr;                   // [kKeyBlock * d_head]
  BlockCorrection* correction = nullptr;        // of the two
};

class KvScratchMemory {
 public:
  KvScratch view(int64_t d_head) {
    const auto n = static_cast<size_t>(kKeyBlock * d_head);
    if (floats_.size() < n) {
      floats_.resize(n);
      levels_.resize(n);
      scales_.resize(n / 16 + 1);
      centres_.resize(n / 16 + 1);
      added_.resize(2 * n + static_cast<size_t>(32 * (kKeyBlock + d_head)));
      places_.resize(n);
    }
    return {floats_.data(), levels_.data(), scales_.data(), centres_.data(),
            &block_,        added_.data(),  places_.data(), &correction_};
  }

 private:
  AlignedVector<float> floats_, scales_, centres_, added_;
  AlignedVector<uint8_t> levels_;
  AlignedVector<uint16_t> places_;
  LevelBlock block_;
  BlockCorrection correction_;
};

// Keys and values of one KV head, block by block: in the store itself or written to scratch.
class KvBlocks {
 public:
  virtual ~KvBlocks() = default;
  virtual KvOperand keys(int64_t block, const KvScratch& scratch) const = 0;
  virtual KvOperand values(int64_t block, const KvScratch& scratch) const = 0;
  // Whether all blocks are pairs; else none is. Of these a block is whole, what is in it beyond
  // what a query sees is finite, and no other segment is beside them.
  virtual bool is_paired() const { return false; }
};

// The n numbers of an operand that is no pairs as floats: its own, or written to `floats`, with
// what is added and behind its factor.
const float* floats_of(const KvOperand& operand, int64_t n, float* floats,
                       const KernelTable& table = kernels());

// What is stored as attention reads it, floats, halves or bfloat16: keys [blocks, d_head,
// kKeyBlock], values [n_ctx, d_head]; bfloat16 in pairs, whole blocks of both.
class StoredBlocks final : public KvBlocks {
 public:
  StoredBlocks(const void* keys, const void* values, DType dtype, int64_t d_head)
      : keys_(keys), values_(values), dtype_(dtype), d_head_(d_head) {}
  KvOperand keys(int64_t block, const KvScratch& /*scratch*/) const override {
    return load(keys_, block);
  }
  KvOperand values(int64_t block, const KvScratch& /*scratch*/) const override {
    return load(values_, block);
  }
  bool is_paired() const override { return dtype_ == DType::kBF16; }

 private:
  KvOperand load(const void* store, int64_t block) const;
  const void *keys_, *values_;
  DType dtype_;  // kF32, kF16 or kBF16
  int64_t d_head_;
};

// Positions [first[i], last[i]) are visible to query i. Blocks of a segment that have a factor have
// one for their keys and one for their values. Segments follow one another: where two are
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

// On the calling thread.
void attend(const AttendArgs& args, const KernelTable& table = kernels());
// Each of `jobs`; they, and where they are few their spans, are shared out among all threads.
void attend(std::span<const AttendArgs> jobs, const KernelTable& table = kernels());

}  // namespace quern
