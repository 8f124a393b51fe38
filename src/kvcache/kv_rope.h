// SPDX-License-Identifier: Apache-2.0
// RoPE of pages: keys that are coded before it are turned when a page is read, and turned back when
// it is written (KVQuant, arXiv 2401.18079). Channels then keep their range at every position. Both
// ways use the same angles: of a page's first position by `cos` and `sin`, of the others by
// theorems of addition in float, so that every ISA has the same bits.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "model/layer_desc.h"

namespace quern {

enum class RopeWay : uint8_t { kTurn, kTurnBack };

class KvRope {
 public:
  KvRope(const RopeDesc& rope, int64_t capacity);

  // x [d_head, kKeyBlock], keys of the positions of a block. A magnitude of the embedding stays.
  void apply(int64_t block, RopeWay way, float* x) const;

 private:
  int64_t half_;                                // pairs (j, j + half_)
  AlignedVector<float> cosine_, sine_;          // [half_, kKeyBlock] of positions within a block
  AlignedVector<float> first_cos_, first_sin_;  // [blocks, half_]
};

// Pair of rows a, b [kKeyBlock] by angles (first + those of cosine and sine):
//   c = first_cos cosine - first_sin sine,  s = first_sin cosine + first_cos sine
//   a <- a c - b s,  b <- b c + a s                                     each rounded by itself
struct RopePair {
  const float *cosine, *sine;  // [kKeyBlock]
  float first_cos, first_sin;
  float sign;  // of s
};
void turn_pair_ref(const RopePair& by, float* a, float* b);
void turn_pair_avx512(const RopePair& by, float* a, float* b);

}  // namespace quern
