// SPDX-License-Identifier: Apache-2.0
// Memory of a thread for the rows of a tile over one span; part of attention.cc.
#pragma once

#include <array>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_tiles.h"
#include "tensor/scratch.h"

namespace quern {

inline constexpr int64_t kGroup = 8;  // rows that the products take together

// What the rows of a tile see of a segment within a span.
struct Visible {
  struct Group {
    Range any, all;  // positions that some row, that every row sees
  };
  const KvBlocks* blocks = nullptr;
  std::array<Range, kMaxTile> rows;
  std::array<Group, kMaxTile / kGroup> groups;
  Range any{0, 0};  // blocks that hold what some row sees
};

// Memory of rows that are rounded for blocks.
struct RoundedRows {
  AlignedVector<uint8_t> q;
  AlignedVector<float> steps, sums;
  AlignedVector<int32_t> offsets;
  LevelRows view(const LevelBlock& block, int64_t n) {
    const int64_t n_groups = n * block.n_groups();
    return {grown(q, n * block.n_sets() * block.planes * block.rows), grown(steps, n_groups),
            grown(offsets, n_groups), grown(sums, n_groups)};
  }
};

// Scratch outlives the call, so that a step allocates nothing once it has seen its longest context.
struct AttentionScratch {
  AlignedVector<float> scores, q, sums, parts, lse, factor_q, factor_out;
  KvScratchMemory block;
  RoundedRows queries, rows;
  std::vector<Visible> segments;
};

inline AttentionScratch& thread_scratch() {
  thread_local AttentionScratch scratch;
  return scratch;
}

}  // namespace quern
