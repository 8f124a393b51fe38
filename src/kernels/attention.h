// SPDX-License-Identifier: Apache-2.0
// Attention of some queries over the rows of one KV head:
//
//   s[i, p] = cap( scale * dot(q_i, k_p) )   for first_i <= p < last_i
//   out_i   = sum_p softmax(s[i, :])_p v_p
//
// A query's result has the same bits however queries are batched and whatever the threads and the
// ISA: scores are `dot`, the softmax runs over the visible range alone, and every element of out
// gathers positions in ascending order by fused multiply-add, starting from zero.
// Serial; callers share out heads and tiles of queries among threads.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "tensor/dtype.h"

namespace quern {

// Keys are stored turned, in blocks of this many positions.
inline constexpr int64_t kKeyBlock = 64;

struct AttendArgs {
  // Head h of query i starts at q + i * ld_q + h * d_head; the heads are some that read this KV
  // head, and see the same positions.
  const float* q = nullptr;
  int64_t ld_q = 0;
  int64_t n_q = 0, n_heads = 1;
  int64_t d_head = 0;

  const void* k = nullptr;    // [ceil(n_ctx / kKeyBlock), d_head, kKeyBlock]
  const void* v = nullptr;    // [n_ctx, d_head]
  DType dtype = DType::kF32;  // of k and v: kF32, kF16 or kBF16
  int64_t n_ctx = 0;
  const int64_t* first = nullptr;  // [n_q], first visible position; null: 0
  const int64_t* last = nullptr;   // [n_q], one past the last visible position; null: n_ctx

  float scale = 1;
  float soft_cap = 0;  // 0: none; else cap * tanh(score / cap)

  float* out = nullptr;  // as q; zeros for a query that sees nothing
  int64_t ld_out = 0;
  float* lse = nullptr;      // [n_q, n_heads] or null: log sum exp of the scores; -inf for none
  float* weights = nullptr;  // [n_q, n_heads, n_ctx] or null: the softmax, zero where not visible
};

void attend(const AttendArgs& args, const KernelTable& table = kernels());

}  // namespace quern
