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

// Rows of K or V: row p starts at element p * stride.
struct KvRows {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kF32, kF16 or kBF16
  int64_t stride = 0;         // elements, >= d_head
};

struct AttendArgs {
  const float* q = nullptr;  // [n_q, d_head]: heads of one KV group, or positions of one head
  int64_t ld_q = 0;
  int64_t n_q = 0;
  int64_t d_head = 0;

  KvRows k, v;  // [n_ctx, d_head]
  int64_t n_ctx = 0;
  const int64_t* first = nullptr;  // [n_q], first visible position; null: 0
  const int64_t* last = nullptr;   // [n_q], one past the last visible position; null: n_ctx

  float scale = 1;
  float soft_cap = 0;  // 0: none; else cap * tanh(score / cap)

  float* out = nullptr;  // [n_q, d_head]; zeros for a query that sees nothing
  int64_t ld_out = 0;
  float* lse = nullptr;      // [n_q] or null: log sum exp of the scores; -inf where nothing is seen
  float* weights = nullptr;  // [n_q, n_ctx] or null: the softmax, zero outside the visible range
  int64_t ld_weights = 0;
};

void attend(const AttendArgs& args, const KernelTable& table = kernels());

}  // namespace quern
