// SPDX-License-Identifier: Apache-2.0
#include "codecs/trellis_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void resize(TrellisBeam& beam, int survivors) {
  const auto room = static_cast<size_t>(survivors) + 16;
  beam.cost.resize(room);
  beam.state.resize(room);
  beam.origin.resize(room);
}

}  // namespace

void trellis_step_ref(const TrellisCode& code, const TrellisStep& step, TrellisBeam& from,
                      TrellisBeam& to, float* costs, float& width) {
  const int n = from.n, branches = 1 << step.bits;
  const auto window = [&](int branch, int i) {
    return from.state[static_cast<size_t>(i)] << step.bits | static_cast<uint32_t>(branch);
  };
  float least = kInfinity;
  for (int b = 0; b < branches; ++b) {
    for (int i = 0; i < n; ++i) {
      const float difference = step.target - static_cast<float>(code.value(window(b, i)));
      const float cost =
          std::fma(step.weight * difference, difference, from.cost[static_cast<size_t>(i)]);
      costs[b * n + i] = cost;
      least = cost < least ? cost : least;
    }
  }
  float threshold = kInfinity;
  if (branches * n > step.limit) {
    threshold = trellis_threshold(least, width, step.limit, [&](float t) {
      return static_cast<int>(
          std::count_if(costs, costs + branches * n, [&](float cost) { return cost < t; }));
    });
    width = threshold - least;
  }
  size_t kept = 0;
  for (int b = 0; b < branches; ++b) {
    for (int i = 0; i < n && kept < static_cast<size_t>(step.limit); ++i) {
      if (!(costs[b * n + i] < threshold)) continue;
      to.cost[kept] = costs[b * n + i] - least;
      to.state[kept] = window(b, i);
      to.origin[kept] = from.origin[static_cast<size_t>(i)];
      ++kept;
    }
  }
  to.n = static_cast<int>(kept);
}

TrellisSearch::TrellisSearch(const TrellisCode& code, int survivors, uint32_t state)
    : code_(code), survivors_(survivors), decided_(state) {
  resize(beam_, survivors);
  resize(next_, survivors);
  int most_bits = 0;
  for (int i = 0; i < 8; ++i) most_bits = std::max(most_bits, code.step_bits(i));
  costs_.resize((static_cast<size_t>(survivors) + 16) << most_bits);
  is_marked_.resize(static_cast<size_t>(survivors));
  beam_.n = 1;
  beam_.cost[0] = 0;
  beam_.state[0] = state;
}

void TrellisSearch::extend(const float* target, const float* weight) {
  const auto step = kernels().isa == Isa::kAvx512 ? trellis_step_avx512 : trellis_step_ref;
  for (int i = 0; i < beam_.n; ++i) beam_.origin[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
  for (int i = 0; i < code_.run(); ++i) {
    const int bits = code_.step_bits(next_extended_ + i);
    step(code_, {target[i], weight[i], bits, survivors_}, beam_, next_, costs_.data(), width_);
    std::swap(beam_, next_);
  }
  next_extended_ = (next_extended_ + code_.run()) % 8;
  Snapshot snapshot;
  if (!spare_.empty()) {
    snapshot = std::move(spare_.back());
    spare_.pop_back();
  }
  snapshot.state.assign(beam_.state.begin(), beam_.state.begin() + beam_.n);
  snapshot.origin.assign(beam_.origin.begin(), beam_.origin.begin() + beam_.n);
  snapshots_.push_back(std::move(snapshot));
}

// The member of the oldest snapshot that a survivor comes from.
uint32_t TrellisSearch::oldest_of(uint32_t survivor) const {
  for (size_t s = snapshots_.size() - 1; s > 0; --s) survivor = snapshots_[s].origin[survivor];
  return survivor;
}

// Walks the set of all survivors' ancestors back; it shrinks fast.
bool TrellisSearch::agree_on_oldest() {
  members_.clear();
  for (int i = 0; i < beam_.n; ++i) {
    if (beam_.cost[static_cast<size_t>(i)] < kInfinity) {
      members_.push_back(static_cast<uint32_t>(i));
    }
  }
  for (size_t s = snapshots_.size() - 1; s > 0 && members_.size() > 1; --s) {
    parents_.clear();
    for (const uint32_t member : members_) {
      const uint32_t parent = snapshots_[s].origin[member];
      if (is_marked_[parent]) continue;
      is_marked_[parent] = 1;
      parents_.push_back(parent);
    }
    for (const uint32_t parent : parents_) is_marked_[parent] = 0;
    members_.swap(parents_);
  }
  return members_.size() == 1;
}

TrellisSearch::Run TrellisSearch::decide(int8_t* values) {
  const auto cheapest = static_cast<uint32_t>(
      std::min_element(beam_.cost.begin(), beam_.cost.begin() + beam_.n) - beam_.cost.begin());
  const uint32_t chosen = oldest_of(cheapest);
  if (!agree_on_oldest()) {
    for (int i = 0; i < beam_.n; ++i) {
      if (oldest_of(static_cast<uint32_t>(i)) != chosen) {
        beam_.cost[static_cast<size_t>(i)] = kInfinity;
      }
    }
  }
  const uint32_t state = snapshots_.front().state[chosen];
  const int first_bit = code_.end_bit(next_decided_);
  const int end = code_.end_bit(next_decided_ + code_.run()), n_bits = end - first_bit;
  const auto bits = static_cast<uint32_t>(state & ((uint64_t{1} << n_bits) - 1));
  const uint64_t path = static_cast<uint64_t>(decided_) << n_bits | bits;
  for (int i = 0; i < code_.run(); ++i) {
    const int later = end - code_.end_bit(next_decided_ + i + 1);
    values[i] = code_.value(static_cast<uint32_t>(path >> later));
  }
  decided_ = static_cast<uint32_t>(path);
  next_decided_ = (next_decided_ + code_.run()) % 8;
  spare_.push_back(std::move(snapshots_.front()));
  snapshots_.pop_front();
  return {bits, n_bits};
}

}  // namespace quern
