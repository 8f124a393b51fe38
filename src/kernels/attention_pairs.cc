// SPDX-License-Identifier: Apache-2.0
// All rows meet all blocks that some row sees: of what a row does not see scores are thrown away,
// and weights are zero. Weights stay exponentials, in 8 bits; what they sum up to divides the
// result.
#include "kernels/attention_pairs.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/checked.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

struct Scratch {
  AlignedVector<float> q, scores;
  std::vector<const uint16_t*> keys, values;
};

// Blocks [first, end) hold what some row sees.
struct Blocks {
  int64_t first = 0, end = 0;

  explicit Blocks(const PairedSpan& span) {
    int64_t begin = std::numeric_limits<int64_t>::max(), last = 0;
    for (int64_t i = 0; i < span.n; ++i) {
      if (span.first[i] >= span.last[i]) continue;
      begin = std::min(begin, span.first[i]);
      last = std::max(last, span.last[i]);
    }
    if (begin >= last) return;
    first = begin / kKeyBlock;
    end = ceil_div(last, kKeyBlock);
  }
  int64_t count() const { return end - first; }
};

// Scores [count * kKeyBlock] of row i become weights, zero where not visible. What its softmax is
// to be multiplied by.
float weigh(const PairedSpan& span, const Blocks& blocks, const KernelTable& table, int64_t i,
            float* scores, float* lse) {
  const int64_t n = std::max<int64_t>(0, span.last[i] - span.first[i]);
  float* seen = n == 0 ? scores : scores + (span.first[i] - blocks.first * kKeyBlock);
  std::fill(scores, seen, 0.0f);
  std::fill(seen + n, scores + blocks.count() * kKeyBlock, 0.0f);
  float scale = span.scale;
  if (span.soft_cap != 0) {
    table.scale(scale, n, seen);
    table.soft_cap(span.soft_cap, n, seen);
    scale = 1;
  }
  const float share = table.softmax_bf16(scale, n, seen, lse);
  if (span.weights != nullptr && n > 0) {
    float* weights = span.weights + i * span.ld_weights + span.first[i];
    std::copy_n(seen, n, weights);
    table.scale(share, n, weights);
  }
  return share;
}

}  // namespace

void attend_paired(const PairedSpan& span, const KernelTable& table, float* out, float* lse,
                   int64_t ld_lse) {
  const int64_t n = span.n, d = span.d_head;
  const Blocks blocks(span);
  if (blocks.count() == 0) {
    std::fill_n(out, n * d, 0.0f);
    for (int64_t i = 0; i < n; ++i) lse[i * ld_lse] = -std::numeric_limits<float>::infinity();
    return;
  }
  thread_local Scratch scratch;
  scratch.keys.clear();
  scratch.values.clear();
  for (int64_t b = blocks.first; b < blocks.end; ++b) {
    scratch.keys.push_back(span.blocks->keys(b, {}).pairs);
    scratch.values.push_back(span.blocks->values(b, {}).pairs);
  }
  // A line more than needed, which holds a row's share: rows a power of two apart would share a
  // cache set.
  const int64_t width = blocks.count() * kKeyBlock, ld = width + 16;
  float *q = grown(scratch.q, n * d), *scores = grown(scratch.scores, n * ld);
  table.round_bf16(span.q, n * d, q);
  PairProduct dots{q, d, 0, n, scratch.keys.data(), blocks.count(), d, kKeyBlock};
  dots.y = scores;
  dots.ld_y = ld;
  dots.step_y = kKeyBlock;
  table.pair_product(dots);
  for (int64_t i = 0; i < n; ++i) {
    float* row = scores + i * ld;
    row[width] = weigh(span, blocks, table, i, row, lse + i * ld_lse);
  }
  PairProduct sums{scores, ld, kKeyBlock, n, scratch.values.data(), blocks.count(), kKeyBlock, d};
  sums.y = out;
  sums.ld_y = d;
  table.pair_product(sums);
  for (int64_t i = 0; i < n; ++i) table.scale(scores[i * ld + width], d, out + i * d);
}

}  // namespace quern
