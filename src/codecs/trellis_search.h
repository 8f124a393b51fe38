// SPDX-License-Identifier: Apache-2.0
// Beam search (the M-algorithm) for the path through a trellis code that follows a run of numbers.
//
// Every survivor is a path: its cost so far and its last 32 bits. For each weight all survivors are
// continued by every pattern of its bits, and the cheapest are kept, up to `survivors`. Paths whose
// windows differ never meet again, so no states are merged; with 512 survivors the error is that of
// the full Viterbi search of a 16-bit window (65536 states) at a hundredth of its cost.
//
// A path is decided in runs of eight weights (four above 4 bits), the oldest undecided first: what
// the cheapest survivor took is fixed, and survivors that took another are dropped. A survivor's
// window holds the bits of its last run, so one snapshot of the beam per run is all that tracing
// back needs.
//
// The outcome is defined to the bit: costs are floats computed by one fused multiply-add, kept
// candidates stand in the order of (bits, survivor), and the threshold comes from exact counts. All
// implementations agree. References: Anderson and Mohan, "Sequential coding algorithms" (1984).
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "codecs/trellis_code.h"
#include "tensor/matrix.h"

namespace quern {

struct TrellisBeam {
  int n = 0;                       // survivors; arrays have room for 16 more
  AlignedVector<float> cost;       // above the cheapest; infinite: dropped
  AlignedVector<uint32_t> state;   // last 32 bits
  AlignedVector<uint32_t> origin;  // index in the beam of the snapshot before
};

// One weight: what to come close to, in units of the code's levels, and what an error costs.
struct TrellisStep {
  float target, weight;
  int bits;   // of this weight, 1 .. 5
  int limit;  // survivors to keep
};

// Replaces `to` by the best continuations of `from`. `costs` is scratch of
// (from.n + 15) / 16 * 16 << bits floats. `width` is threshold - least of the last step and the
// first guess of this one's.
void trellis_step_ref(const TrellisCode& code, const TrellisStep& step, TrellisBeam& from,
                      TrellisBeam& to, float* costs, float& width);
// Needs AVX-512 VBMI.
void trellis_step_avx512(const TrellisCode& code, const TrellisStep& step, TrellisBeam& from,
                         TrellisBeam& to, float* costs, float& width);

// A threshold below which between 7/8 limit and limit of the costs lie, if it is found soon; else
// one below which more do. count(t) is the number of costs below t; least is the smallest cost.
template <class Count>
float trellis_threshold(float least, float width, int limit, const Count& count) {
  float low = least, high = 0;
  bool has_high = false;
  // Costs are not negative; the factor keeps t above a `least` that rounding would swallow it in.
  float t = std::max(least + (width > 0 ? width : 1.0f), least * 1.0001f);
  for (int i = 0; i < 24; ++i) {
    const int n = count(t);
    const float ratio = static_cast<float>(n) / static_cast<float>(limit);
    float next;
    if (n > limit) {
      high = t;
      has_high = true;
      next = least + (t - least) * (0.65f + 0.35f / ratio);
    } else if (n < limit - limit / 8) {
      low = t;
      next = least + (t - least) * (1.45f - 0.45f * ratio);
    } else {
      return t;
    }
    t = (next > low && (!has_high || next < high)) ? next : low + (high - low) * 0.5f;
    if (!(t > low)) break;
  }
  return has_high ? high : t;
}

class TrellisSearch {
 public:
  // `state` holds the 32 bits before the run.
  TrellisSearch(const TrellisCode& code, int survivors, uint32_t state);

  struct Run {
    uint32_t bits;
    int n_bits;
  };

  // code.run() weights more: targets in units of the levels, weights of their squared errors.
  void extend(const float* target, const float* weight);
  bool has_undecided() const { return !snapshots_.empty(); }
  // Decides the oldest undecided run and writes its values.
  Run decide(int8_t* values);

 private:
  struct Snapshot {
    AlignedVector<uint32_t> state, origin;
  };
  uint32_t oldest_of(uint32_t survivor) const;
  bool agree_on_oldest();

  const TrellisCode& code_;
  int survivors_;
  uint32_t decided_;                          // the last 32 decided bits
  int next_extended_ = 0, next_decided_ = 0;  // first weight of the next run, of 8
  float width_ = 0;
  TrellisBeam beam_, next_;
  AlignedVector<float> costs_;
  std::deque<Snapshot> snapshots_;
  std::vector<Snapshot> spare_;
  std::vector<uint32_t> members_, parents_;
  std::vector<uint8_t> is_marked_;
};

}  // namespace quern
