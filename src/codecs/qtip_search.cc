// SPDX-License-Identifier: Apache-2.0
// Viterbi's algorithm on the bitshift trellis. A state is the last state_bits bits of the stream;
// two states in a row share all but step_bits of them, their overlap. So a step needs the best cost
// of each overlap only, and what it decides for each overlap is which step_bits bits have left the
// window: one byte, the back pointer.
//
// Tail-biting: the stream is a ring, so the overlap before the first step is the one after the
// last. A first, free pass goes around from the middle of the block; the overlap that it crosses
// the block's start with is then fixed at both ends of a second pass (QTIP, algorithm 4).
//
// The search walks the block from its last weight to its first. Read from the least bit up, a
// stored window then has the newest bits lowest, as the papers' trellis wants them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "codecs/qtip.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

// 8 MiB at most, for 256 steps of one bit; kept by each thread between blocks, since fresh pages
// would cost as much as a fast search.
struct Scratch {
  AlignedVector<float> best, next;
  AlignedVector<uint8_t> back;
};

Scratch& scratch(const QtipTrellis& trellis) {
  thread_local Scratch kept;
  const auto overlaps = static_cast<size_t>(trellis.n_overlaps());
  if (kept.best.size() < overlaps + 16) {
    kept.best.resize(overlaps + 16);
    kept.next.resize(overlaps + 16);
  }
  const size_t needed = overlaps * static_cast<size_t>(trellis.n_steps);
  if (kept.back.size() < needed) kept.back.resize(needed);
  return kept;
}

}  // namespace

void qtip_step_ref(const QtipTrellis& trellis, const QtipStep& step) {
  const int64_t n_overlaps = trellis.n_overlaps(), n_states = trellis.n_states();
  for (int64_t e = 0; e < n_overlaps; ++e) {
    float least = 0;
    for (int64_t b = 0; b < int64_t{1} << trellis.step_bits; ++b) {
      const int64_t state = e + b * n_overlaps;
      float cost = step.best[state >> trellis.step_bits];
      for (int v = 0; v < trellis.step_weights; ++v) {
        const float f = step.codewords[v * n_states + state];
        const float difference = std::fma(-step.root_weight[v], f, step.target[v]);
        cost = std::fma(difference, difference, cost);
      }
      if (b == 0 || cost < least) {
        least = cost;
        step.back[e] = static_cast<uint8_t>(b);
      }
    }
    step.next[e] = least;
  }
}

QtipStepFunction qtip_step(const QtipTrellis& trellis) {
  if (trellis.n_overlaps() < 16) return qtip_step_ref;
  const Isa isa = kernels().isa;
  if (isa == Isa::kAvx512) return qtip_step_avx512;
  if (isa == Isa::kAvx2) return qtip_step_avx2;
  return qtip_step_ref;
}

float qtip_pass(const QtipTrellis& trellis, const QtipBlock& block, QtipStepFunction step,
                int first, int64_t from, uint32_t* states) {
  const int64_t overlaps = trellis.n_overlaps();
  const int n = trellis.n_steps;
  Scratch& memory = scratch(trellis);
  float *best = memory.best.data(), *next = memory.next.data();
  std::fill_n(best, overlaps, from < 0 ? 0.0f : std::numeric_limits<float>::infinity());
  if (from >= 0) best[from] = 0;
  for (int i = 0; i < n; ++i) {
    const int t = n - 1 - (first + i) % n;  // from the last weight to the first
    step(trellis, {block.codewords, block.target + t * trellis.step_weights,
                   block.root_weight + t * trellis.step_weights, best, next,
                   memory.back.data() + i * overlaps});
    std::swap(best, next);
  }
  int64_t overlap = from >= 0 ? from : std::min_element(best, best + overlaps) - best;
  const float cost = best[overlap];
  for (int i = n - 1; i >= 0; --i) {
    const int64_t state =
        overlap + memory.back[static_cast<size_t>(i * overlaps + overlap)] * overlaps;
    states[i] = static_cast<uint32_t>(state);
    overlap = state >> trellis.step_bits;
  }
  return cost;
}

float qtip_search(const QtipTrellis& trellis, const QtipBlock& block, QtipStepFunction step,
                  uint8_t* symbols) {
  const int n = trellis.n_steps;
  std::vector<uint32_t> states(static_cast<size_t>(n));
  qtip_pass(trellis, block, step, n / 2, -1, states.data());
  const int64_t overlap = states[static_cast<size_t>(n - n / 2)] >> trellis.step_bits;
  const float cost = qtip_pass(trellis, block, step, 0, overlap, states.data());
  const uint32_t mask = (1u << trellis.step_bits) - 1;
  for (int i = 0; i < n; ++i) {
    symbols[n - 1 - i] = static_cast<uint8_t>(states[static_cast<size_t>(i)] & mask);
  }
  return cost;
}

}  // namespace quern
