// SPDX-License-Identifier: Apache-2.0
// One span of attention over blocks of bfloat16 pairs; part of attention.cc.
#pragma once

#include <cstdint>

#include "kernels/attention.h"

namespace quern {

struct PairedSpan {
  const KvBlocks* blocks = nullptr;                 // paired
  int64_t n = 0;                                    // rows
  const int64_t *first = nullptr, *last = nullptr;  // a row sees [first[i], last[i]), of one span
  const float* q = nullptr;                         // [n, d_head]
  int64_t d_head = 0;
  float scale = 1, soft_cap = 0;
  // Null, or where the softmax goes of what each row sees: of position 0 of row 0, and the step
  // between rows.
  float* weights = nullptr;
  int64_t ld_weights = 0;
};

// out [n, d_head]; lse of row i at i * ld_lse.
void attend_paired(const PairedSpan& span, const KernelTable& table, float* out, float* lse,
                   int64_t ld_lse);

}  // namespace quern
