// SPDX-License-Identifier: Apache-2.0
// The seams inside the qtip codec: codewords, one step of the search, one row of the decoder.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/matrix.h"

namespace quern {

enum class QtipCode : uint8_t { kMad1, kInst3, kMcg, kMul1, kMul1Int8, kHyb };

constexpr int kQtipTile = 16;        // rows and columns of a tile
constexpr int kQtipTableSize = 512;  // pairs of the table of hyb

struct QtipTrellis {
  int state_bits = 16;   // L
  int step_bits = 2;     // kV: bits that a step shifts in
  int step_weights = 1;  // V
  int n_steps = 256;     // T / V
  int64_t n_states() const { return int64_t{1} << state_bits; }
  int64_t n_overlaps() const { return int64_t{1} << (state_bits - step_bits); }
};

// The hash of weight v of a step, u = factor x + addend modulo 2^32; of the codes but hyb.
struct QtipHash {
  uint32_t factor, addend;
};
QtipHash qtip_hash(QtipCode code, int v);
// Weight v of f(state), of the codes but hyb.
float qtip_codeword(QtipCode code, uint32_t state, int v);
// The pair of a state of hyb: f16 bits, the first weight's in the low half. `table`: f16 [512, 2].
uint32_t qtip_pair(const uint8_t* table, uint32_t state);
// Codewords of all states [step_weights, n_states]; `table` is read for hyb only.
AlignedVector<float> qtip_codewords(QtipCode code, const QtipTrellis& trellis,
                                    const uint8_t* table);
// k-means of a Gaussian plane, the same in every call: f16 bits [512, 2].
std::span<const uint16_t> qtip_hyb_table();

// One step of Viterbi's algorithm. With overlap e = state >> step_bits before a step and
// e' = state mod n_overlaps after it, for each e'
//     next[e'] = min over b of best[s >> step_bits] + sum_v (target_v - root_weight_v f_v(s))^2,
//     s = e' + b * n_overlaps,   back[e'] = the lowest b that attains it,
// terms added in the order of v, each by one fused multiply-add of the difference's square, the
// difference itself fused. best and next: [n_overlaps + 16] on 64-byte lines, not overlapping.
struct QtipStep {
  const float* codewords;    // [step_weights, n_states]
  const float* target;       // [step_weights]
  const float* root_weight;  // [step_weights]
  const float* best;
  float* next;
  uint8_t* back;
};
using QtipStepFunction = void (*)(const QtipTrellis&, const QtipStep&);
void qtip_step_ref(const QtipTrellis& trellis, const QtipStep& step);
// The fast ones need n_overlaps >= 16.
void qtip_step_avx2(const QtipTrellis& trellis, const QtipStep& step);
void qtip_step_avx512(const QtipTrellis& trellis, const QtipStep& step);
QtipStepFunction qtip_step(const QtipTrellis& trellis);  // the fastest here

// One block: weight p = step * step_weights + v has target root_weight_p * z_p, in stored order.
struct QtipBlock {
  const float* codewords;
  const float* target;       // [n_steps * step_weights]
  const float* root_weight;  // [n_steps * step_weights]
};
// Finds a tail-biting path by two passes and writes the bits that step t shifts in to symbols[t].
// Returns the cost of the second pass.
float qtip_search(const QtipTrellis& trellis, const QtipBlock& block, QtipStepFunction step,
                  uint8_t* symbols);
// One pass: steps first, first + 1, ... around the block in the order of the search, from overlap
// `from` to the same (-1: any). states[i] is the state of the i-th step made. Returns the cost.
float qtip_pass(const QtipTrellis& trellis, const QtipBlock& block, QtipStepFunction step,
                int first, int64_t from, uint32_t* states);

// One row of a strip of tiles: dst[j] = scale * f(state of weight 16 row + j mod 16 of tile j /
// 16). `tiles` holds 512 * weight bits / 16 bytes a tile, nothing behind the last is read.
struct QtipRow {
  QtipCode code;
  int state_bits;
  int step_bits;
  int step_weights;  // 1 or 2; 2 for hyb
  const uint8_t* tiles;
  const uint8_t* table;  // hyb: f16 [512, 2]; may be unaligned
  int row;               // within the tile, 0 to 15
  int64_t n;
  float scale;
};
// Bytes of one row of a tile.
inline int qtip_row_bytes(int step_weights, int step_bits) {
  return kQtipTile / 8 / step_weights * step_bits;
}
// The state of step t of a tile: state_bits bits from bit t * step_bits on, around its end.
uint32_t qtip_window(const uint8_t* tile, int tile_bytes, int state_bits, int bit);
void qtip_decode_row_ref(const QtipRow& row, float* dst);
void qtip_decode_row_avx512(const QtipRow& row, float* dst);

}  // namespace quern
