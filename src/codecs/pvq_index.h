// SPDX-License-Identifier: Apache-2.0
// Numbers the points of a pyramid: y in Z^d with sum |y_i| = k.
//
// N(d, k) counts them: N(d, 0) = 1, N(0, k) = 0 for k > 0, else
//     N(d, k) = N(d-1, k) + N(d, k-1) + N(d-1, k-1).
// The index of a point halves it: with l = floor(d / 2), r = d - l and t pulses on the left,
//     index(y) = sum_{s<t} N(l, s) N(r, k-s) + index(left) N(r, k-t) + index(right),
// down to d = 1, where +k is 0 and -k is 1. Unlike the numbering column by column (Fischer, Opus),
// this takes one division per halving and few of them wide, and quarters of few pulses come from a
// table. Where N(d, k) < 2^64 all is done in 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace quern {

using Wide = unsigned __int128;

struct PvqLeaves;

class PvqIndex {
 public:
  static constexpr int kMaxDim = 128, kMaxPulses = 255;

  // N(d, k) for d <= dim, k <= pulses, saturated at 2^128 - 1: [(dim + 1) * (pulses + 1)].
  static std::vector<Wide> counts(int dim, int pulses);
  // Where N(d, k) stands in them.
  static size_t place(int d, int k, int pulses) {
    return static_cast<size_t>(d) * static_cast<size_t>(pulses + 1) + static_cast<size_t>(k);
  }
  // Whether N(dim, pulses) fits 128 bits.
  static bool fits(int dim, int pulses);

  // One for all who ask for the same, while somebody holds it.
  static std::shared_ptr<const PvqIndex> shared(int dim, int pulses);

  // Needs dim <= kMaxDim, pulses <= kMaxPulses, both above 0, and fits(dim, pulses).
  PvqIndex(int dim, int pulses);

  int dim() const { return dim_; }
  int pulses() const { return pulses_; }
  Wide size() const { return count(dim_, pulses_); }
  Wide count(int d, int k) const { return counts_[place(d, k, pulses_)]; }
  int index_bits() const;  // least b with size() <= 2^b

  Wide index_of(const int16_t* y) const;
  // Any index gives a point: one past the last gives the last.
  void point_of(Wide index, int16_t* y) const;

 private:
  // How k pulses spread over the halves of d: sums over the first t splits, t = 0, ..., k; and for
  // each value of the index's highest bits the least t that it can mean.
  struct Split {
    std::vector<Wide> wide;        // where N(d, k) >= 2^64
    std::vector<uint64_t> narrow;  // else
    std::vector<uint8_t> first;    // [kBuckets]
    int shift = 0;
  };
  static constexpr int kBucketBits = 6;

  const Split& split(int d, int k) const { return splits_[place(d, k, pulses_)]; }
  void add_splits(int d);
  Wide index_of(const int16_t* y, int d, int* pulses) const;
  void point_of(int d, int k, Wide index, int16_t* y) const;
  void narrow_point_of(int d, int k, uint64_t index, int16_t* y) const;

  int dim_, pulses_;
  std::vector<Wide> counts_;
  std::vector<Split> splits_;
  const PvqLeaves* leaves_;
};

}  // namespace quern
