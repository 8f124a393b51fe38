// SPDX-License-Identifier: Apache-2.0
// What the tests of kernels share: rows between guard zones, equality to the bit, the list of ISAs.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "kernels/kernels.h"

namespace quern::testing {

inline constexpr int64_t kSizes[] = {1,  2,  3,  4,  7,  8,  9,   15,  16,
                                     17, 31, 33, 48, 64, 96, 100, 257, 1000};

// The ISAs this host has besides the reference.
inline std::vector<Isa> fast_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (host_has(isa)) isas.push_back(isa);
  }
  return isas;
}

// n values that start at any element offset from a cache line, between guards.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n, int64_t offset = 0)
      : n_(n),
        offset_(kGuard + offset),
        all_(static_cast<size_t>(n + 2 * kGuard + offset), guard()) {}
  T* data() { return all_.data() + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }

  bool guards_hold() const {
    const auto count = static_cast<int64_t>(all_.size());
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = i >= offset_ && i < offset_ + n_;
      if (!inside && all_[static_cast<size_t>(i)] != guard()) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 64;
  static T guard() { return static_cast<T>(12345); }
  int64_t n_, offset_;
  std::vector<T> all_;
};

inline bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

inline bool same_bits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

enum class Fill { kGaussian, kSpecial };

// Gaussian values; kSpecial mixes in zeros, infinities, NaN, subnormals and very large magnitudes.
inline void fill(float* x, int64_t n, Fill kind, uint64_t seed) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float special[] = {0.0f,    -0.0f,    kInfinity, -kInfinity, std::nanf(""), 1e-40f,
                           -1e-42f, -87.4f,   -103.9f,   -1e30f,     3e38f,         88.9f,
                           1e-20f,  65519.0f, 65520.0f,  6e-8f,      2.9e-8f,       -6.2e-5f};
  Random random(seed);
  for (int64_t i = 0; i < n; ++i) {
    x[i] = static_cast<float>(random.gaussian());
    if (kind == Fill::kSpecial && random.below(4) == 0) x[i] = special[random.below(18)];
  }
}

}  // namespace quern::testing
