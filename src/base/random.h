// SPDX-License-Identifier: Apache-2.0
// A specified generator, so that a seed means the same numbers on every machine and in every
// release. xoshiro256++ seeded by splitmix64 (Blackman and Vigna, public domain).
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace quern {

inline uint64_t splitmix64(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

class Random {
 public:
  // `stream` separates uses of one seed: a layer, a site, a purpose.
  explicit Random(uint64_t seed, uint64_t stream = 0) {
    uint64_t mix = seed ^ (0xd1342543de82ef95u * (stream + 1));
    for (uint64_t& word : state_) word = splitmix64(mix);
  }

  uint64_t next() {
    const uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // Uniform in [0, n); the bias of one multiplication is below 2^-64 * n.
  uint64_t below(uint64_t n) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * n) >> 64);
  }

  // Unit Gaussian (Box-Muller; one of the pair is dropped so that draws never depend on history).
  double gaussian() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

  // +1 or -1.
  int sign() { return (next() >> 63) != 0 ? -1 : 1; }

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace quern
