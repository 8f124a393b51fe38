// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_rope.h"

#include <cmath>

#include "base/check.h"
#include "base/checked.h"
#include "kvcache/kv_rope_lanes.h"

namespace quern {
namespace {

void put_angle(double angle, int64_t at, AlignedVector<float>& cosine, AlignedVector<float>& sine) {
  cosine[static_cast<size_t>(at)] = static_cast<float>(std::cos(angle));
  sine[static_cast<size_t>(at)] = static_cast<float>(std::sin(angle));
}

}  // namespace

KvRope::KvRope(const RopeDesc& rope, int64_t capacity) : half_(rope.n_dims / 2) {
  const bool is_long = !rope.inv_freq_long.empty() && capacity > rope.original_context;
  const std::vector<double>& inv_freq = is_long ? rope.inv_freq_long : rope.inv_freq;
  const int64_t n_blocks = ceil_div(capacity, kKeyBlock);
  for (AlignedVector<float>* x : {&cosine_, &sine_})
    x->resize(static_cast<size_t>(half_ * kKeyBlock));
  for (AlignedVector<float>* x : {&first_cos_, &first_sin_})
    x->resize(static_cast<size_t>(n_blocks * half_));
  for (int64_t j = 0; j < half_; ++j) {
    const double step = inv_freq[static_cast<size_t>(j)];
    for (int64_t i = 0; i < kKeyBlock; ++i) {
      put_angle(static_cast<double>(i) * step, j * kKeyBlock + i, cosine_, sine_);
    }
    for (int64_t block = 0; block < n_blocks; ++block) {
      put_angle(static_cast<double>(block * kKeyBlock) * step, block * half_ + j, first_cos_,
                first_sin_);
    }
  }
}

void KvRope::apply(int64_t block, RopeWay way, float* x) const {
  const auto turn = kernels().isa == Isa::kAvx512 ? turn_pair_avx512 : turn_pair_ref;
  const int64_t first = block * half_;
  QUERN_CHECK(first + half_ <= static_cast<int64_t>(first_cos_.size()));
  for (int64_t j = 0; j < half_; ++j) {
    const auto at = static_cast<size_t>(first + j);
    const RopePair pair{cosine_.data() + j * kKeyBlock, sine_.data() + j * kKeyBlock,
                        first_cos_[at], first_sin_[at], way == RopeWay::kTurn ? 1.0f : -1.0f};
    turn(pair, x + j * kKeyBlock, x + (j + half_) * kKeyBlock);
  }
}

void turn_pair_ref(const RopePair& by, float* a, float* b) { turn_pair_lanes(by, a, b); }

}  // namespace quern
