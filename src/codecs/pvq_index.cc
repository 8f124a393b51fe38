// SPDX-License-Identifier: Apache-2.0
#include "codecs/pvq_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "base/check.h"

namespace quern {
namespace {

constexpr Wide kTooMany = ~Wide{0};

Wide saturated_sum(Wide a, Wide b) { return a > kTooMany - b ? kTooMany : a + b; }

int bit_width(Wide value) {
  const auto high = static_cast<uint64_t>(value >> 64);
  return high != 0 ? 64 + static_cast<int>(std::bit_width(high))
                   : static_cast<int>(std::bit_width(static_cast<uint64_t>(value)));
}

bool is_narrow(Wide value) { return value >> 64 == 0; }

// The point of d = 2 and k > 0: (0, +-k), then four each of t on the left, then (+-k, 0).
template <class T>
void pair_of(int k, int index, T* y) {
  const int place = index + 2, t = place / 4;
  const bool is_end = t == 0 || t == k;
  const bool left = (place & (is_end ? 1 : 2)) != 0, right = (place & 1) != 0;
  y[0] = static_cast<T>(left ? -t : t);
  y[1] = static_cast<T>(right ? t - k : k - t);
}

constexpr int kLeafDim = 4, kLeafPulses = 20;

}  // namespace

// All points of four entries and few pulses: at 4 bits a weight nine in ten groups of four.
struct PvqLeaves {
  std::vector<std::array<int8_t, kLeafDim>> points;  // by pulses and index
  std::array<size_t, kLeafPulses + 1> start = {};

  PvqLeaves() {
    for (int k = 0; k <= kLeafPulses; ++k) {
      start[static_cast<size_t>(k)] = points.size();
      for (int t = 0; t <= k; ++t) {
        const int n_left = std::max(1, 4 * t), n_right = std::max(1, 4 * (k - t));
        for (int i = 0; i < n_left * n_right; ++i) {
          std::array<int8_t, kLeafDim> point = {};
          if (t > 0) pair_of(t, i / n_right, point.data());
          if (t < k) pair_of(k - t, i % n_right, point.data() + 2);
          points.push_back(point);
        }
      }
    }
  }
  void point_of(int k, uint64_t index, int16_t* y) const {
    const auto& point = points[start[static_cast<size_t>(k)] + index];
    for (size_t i = 0; i < kLeafDim; ++i) y[i] = int16_t{point[i]};
  }
};

std::vector<Wide> PvqIndex::counts(int dim, int pulses) {
  std::vector<Wide> n(place(dim + 1, 0, pulses));
  const auto at = [&](int d, int k) -> Wide& { return n[place(d, k, pulses)]; };
  at(0, 0) = 1;
  for (int d = 1; d <= dim; ++d) {
    at(d, 0) = 1;
    for (int k = 1; k <= pulses; ++k) {
      at(d, k) = saturated_sum(saturated_sum(at(d - 1, k), at(d, k - 1)), at(d - 1, k - 1));
    }
  }
  return n;
}

bool PvqIndex::fits(int dim, int pulses) { return counts(dim, pulses).back() != kTooMany; }

PvqIndex::PvqIndex(int dim, int pulses)
    : dim_(dim), pulses_(pulses), counts_(counts(dim, pulses)), splits_(place(dim + 1, 0, pulses)) {
  QUERN_CHECK(dim > 0 && dim <= kMaxDim && pulses > 0 && pulses <= kMaxPulses);
  QUERN_CHECK(size() != kTooMany);
  static const PvqLeaves leaves;
  leaves_ = &leaves;
  add_splits(dim);
}

std::shared_ptr<const PvqIndex> PvqIndex::shared(int dim, int pulses) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::weak_ptr<const PvqIndex>> all;
  const std::lock_guard lock(mutex);
  auto& entry = all[{dim, pulses}];
  auto index = entry.lock();
  if (index == nullptr) entry = index = std::make_shared<const PvqIndex>(dim, pulses);
  return index;
}

int PvqIndex::index_bits() const { return bit_width(size() - 1); }

void PvqIndex::add_splits(int d) {
  if (d < 2 || !split(d, 0).first.empty()) return;
  const int left = d / 2, right = d - left;
  for (int k = 0; k <= pulses_; ++k) {
    const Wide all = count(d, k);
    if (d == dim_ && k != pulses_ && k != 0) continue;  // occur below the top only
    Split& s = splits_[place(d, k, pulses_)];
    std::vector<Wide> sums = {0};
    for (int t = 0; t < k; ++t) sums.push_back(sums.back() + count(left, t) * count(right, k - t));
    s.shift = std::max(0, bit_width(all - 1) - kBucketBits);
    int t = 0;
    for (int b = 0; b < 1 << kBucketBits; ++b) {
      while (t < k && sums[static_cast<size_t>(t) + 1] <= Wide{static_cast<unsigned>(b)} << s.shift)
        ++t;
      s.first.push_back(static_cast<uint8_t>(t));
    }
    if (is_narrow(all)) {
      s.narrow.assign(sums.begin(), sums.end());
      s.narrow.push_back(~uint64_t{0});
    } else {
      s.wide = std::move(sums);
      s.wide.push_back(kTooMany);
    }
  }
  add_splits(left);
  add_splits(right);
}

Wide PvqIndex::index_of(const int16_t* y) const {
  int pulses = 0;
  const Wide index = index_of(y, dim_, &pulses);
  QUERN_CHECK(pulses == pulses_);
  return index;
}

Wide PvqIndex::index_of(const int16_t* y, int d, int* pulses) const {
  if (d == 1) {
    *pulses = std::abs(y[0]);
    return y[0] < 0 ? 1 : 0;
  }
  int left_pulses = 0, right_pulses = 0;
  const Wide left = index_of(y, d / 2, &left_pulses);
  const Wide right = index_of(y + d / 2, d - d / 2, &right_pulses);
  *pulses = left_pulses + right_pulses;
  const Split& s = split(d, *pulses);
  const auto t = static_cast<size_t>(left_pulses);
  const Wide below = s.wide.empty() ? s.narrow[t] : s.wide[t];
  return below + left * count(d - d / 2, right_pulses) + right;
}

void PvqIndex::point_of(Wide index, int16_t* y) const {
  point_of(dim_, pulses_, std::min(index, size() - 1), y);
}

void PvqIndex::point_of(int d, int k, Wide index, int16_t* y) const {
  if (is_narrow(count(d, k))) {
    return narrow_point_of(d, k, static_cast<uint64_t>(index), y);
  }
  const Split& s = split(d, k);
  int t = s.first[static_cast<size_t>(index >> s.shift)];
  while (s.wide[static_cast<size_t>(t) + 1] <= index) ++t;
  index -= s.wide[static_cast<size_t>(t)];
  const int left = d / 2, right = d - left;
  const Wide n_right = count(right, k - t), quotient = index / n_right;
  point_of(left, t, quotient, y);
  point_of(right, k - t, index - quotient * n_right, y + left);
}

void PvqIndex::narrow_point_of(int d, int k, uint64_t index, int16_t* y) const {
  if (d == kLeafDim && k <= kLeafPulses) return leaves_->point_of(k, index, y);
  if (d == 1) {
    y[0] = static_cast<int16_t>(index != 0 ? -k : k);
    return;
  }
  if (k == 0) {
    std::fill_n(y, d, int16_t{0});
    return;
  }
  if (d == 2) return pair_of(k, static_cast<int>(index), y);
  const Split& s = split(d, k);
  int t = s.first[static_cast<size_t>(index >> s.shift)];
  while (s.narrow[static_cast<size_t>(t) + 1] <= index) ++t;
  index -= s.narrow[static_cast<size_t>(t)];
  const int left = d / 2, right = d - left;
  const auto n_right = static_cast<uint64_t>(count(right, k - t));
  const uint64_t quotient = index / n_right;
  narrow_point_of(left, t, quotient, y);
  narrow_point_of(right, k - t, index - quotient * n_right, y + left);
}

}  // namespace quern
