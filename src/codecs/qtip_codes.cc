// SPDX-License-Identifier: Apache-2.0
// The codewords of qtip: a state is hashed by one multiplication, and a few of its bits are read as
// a number that is roughly Gaussian. Constants are part of the format.
//
//   mad1      u = 34038481 x + 76625530;        f = (sum of the 4 bytes of u - 510) / 147.800537
//   inst3     u = 89226354 x + 64248484;        f = half(high) + half(low) of
//                                                   (u & 0x8fff8fff) ^ 0x3b603b60, rounded to half
//   mcg       u = 0xcbac1fed x;                 f as inst3
//   mul1      u = 0x83dcd12d x;                 f = (1024 + byte sum) half(0x1eee) + half(0xc931),
//                                                   rounded to half once
//   mul1int8  u = 0x83dcd12d x;                 f = (byte sum - 510) / 4 to the nearest integer,
//                                                   halves down, so that it fits a signed byte
//   hyb       h = x^2 + x;                      f = pair (h >> 6) & 511 of a table, the sign of the
//                                                   first flipped where bit 15 of h is set
//
// All modulo 2^32. With two weights a step, the second's u is the hash of the first's u: those of
// mcg and mul1 are then c x and c^2 x. QTIP and EXL3 have one weight a step, or hyb's two. Other
// multipliers for the second weight did worse: by 1 to 3 % of the error with EXL3's.
//
// A half plus a half, and the multiply-add of mul1, are exact in float, so
// rounding to half afterwards is the one rounding of half arithmetic.
// References: QTIP (arXiv 2406.11235) section 3.1; exllamav3, exl3 codebooks (mcg, mul1).
#include <cmath>
#include <cstring>

#include "base/float_types.h"
#include "base/random.h"
#include "codecs/qtip.h"

namespace quern {
namespace {

constexpr int kSamples = 1 << 16;
constexpr int kIterations = 25;
constexpr double kTableStd = 0.9682458365518543;  // sqrt(1 - 2^-4), QTIP's

int byte_sum(uint32_t u) {
  return static_cast<int>((u & 255) + (u >> 8 & 255) + (u >> 16 & 255) + (u >> 24));
}

float half_sum(uint32_t u) {
  u = (u & 0x8fff8fffu) ^ 0x3b603b60u;
  const float sum =
      f16_to_float(static_cast<uint16_t>(u >> 16)) + f16_to_float(static_cast<uint16_t>(u));
  return f16_to_float(float_to_f16(sum));
}

// Lloyd's algorithm on samples of the unit Gaussian plane, seeded by the first samples.
std::vector<double> gaussian_centres() {
  Random random(0x9717);
  std::vector<float> x(kSamples), y(kSamples);
  for (int i = 0; i < kSamples; ++i) {
    x[i] = static_cast<float>(random.gaussian());
    y[i] = static_cast<float>(random.gaussian());
  }
  std::vector<float> cx(x.begin(), x.begin() + kQtipTableSize);
  std::vector<float> cy(y.begin(), y.begin() + kQtipTableSize);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    std::vector<double> sum(3 * kQtipTableSize);
    for (int i = 0; i < kSamples; ++i) {
      float distance[kQtipTableSize];
      for (int c = 0; c < kQtipTableSize; ++c) {
        distance[c] = (x[i] - cx[c]) * (x[i] - cx[c]) + (y[i] - cy[c]) * (y[i] - cy[c]);
      }
      int nearest = 0;
      for (int c = 1; c < kQtipTableSize; ++c) {
        if (distance[c] < distance[nearest]) nearest = c;
      }
      double* of = sum.data() + 3 * nearest;
      of[0] += x[i];
      of[1] += y[i];
      of[2] += 1;
    }
    for (int c = 0; c < kQtipTableSize; ++c) {
      if (sum[3 * c + 2] == 0) continue;
      cx[c] = static_cast<float>(sum[3 * c] / sum[3 * c + 2]);
      cy[c] = static_cast<float>(sum[3 * c + 1] / sum[3 * c + 2]);
    }
  }
  std::vector<double> centres;
  for (int c = 0; c < kQtipTableSize; ++c) centres.insert(centres.end(), {cx[c], cy[c]});
  return centres;
}

}  // namespace

std::span<const uint16_t> qtip_hyb_table() {
  static const std::vector<uint16_t> table = [] {
    const std::vector<double> centres = gaussian_centres();
    double mean = 0, square = 0;
    for (const double c : centres) {
      mean += c / static_cast<double>(centres.size());
      square += c * c / static_cast<double>(centres.size());
    }
    const double scale = kTableStd / std::sqrt(square - mean * mean);
    std::vector<uint16_t> halves;
    halves.reserve(centres.size());
    for (const double c : centres) halves.push_back(float_to_f16(static_cast<float>(c * scale)));
    return halves;
  }();
  return table;
}

QtipHash qtip_hash(QtipCode code, int v) {
  const QtipHash once = code == QtipCode::kMad1    ? QtipHash{34038481u, 76625530u}
                        : code == QtipCode::kInst3 ? QtipHash{89226354u, 64248484u}
                        : code == QtipCode::kMcg   ? QtipHash{0xcbac1fedu, 0}
                                                   : QtipHash{0x83dcd12du, 0};
  if (v == 0) return once;
  return {once.factor * once.factor, once.factor * once.addend + once.addend};
}

float qtip_codeword(QtipCode code, uint32_t state, int v) {
  const QtipHash hash = qtip_hash(code, v);
  const uint32_t u = hash.factor * state + hash.addend;
  switch (code) {
    case QtipCode::kMad1:
      return static_cast<float>(byte_sum(u) - 510) / 147.800537f;
    case QtipCode::kInst3:
    case QtipCode::kMcg:
      return half_sum(u);
    case QtipCode::kMul1: {
      const float sum = static_cast<float>(1024 + byte_sum(u));
      const float product = sum * f16_to_float(0x1eee);  // exact
      return f16_to_float(float_to_f16(product + f16_to_float(0xc931)));
    }
    case QtipCode::kMul1Int8:
      return static_cast<float>(((byte_sum(u) + 3) >> 2) - 128);
    case QtipCode::kHyb:
      break;
  }
  return 0;
}

uint32_t qtip_pair(const uint8_t* table, uint32_t state) {
  const uint32_t h = state * state + state;
  uint32_t pair;
  std::memcpy(&pair, table + 4 * (h >> 6 & 511), 4);
  return pair ^ (h & 0x8000u);
}

AlignedVector<float> qtip_codewords(QtipCode code, const QtipTrellis& trellis,
                                    const uint8_t* table) {
  const auto n = static_cast<size_t>(trellis.n_states());
  AlignedVector<float> values(n * static_cast<size_t>(trellis.step_weights));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto state = static_cast<uint32_t>(i % n);
    const int v = i < n ? 0 : 1;
    values[i] = code == QtipCode::kHyb
                    ? f16_to_float(static_cast<uint16_t>(qtip_pair(table, state) >> 16 * v))
                    : qtip_codeword(code, state, v);
  }
  return values;
}

}  // namespace quern
