// SPDX-License-Identifier: Apache-2.0
// Nearest points of E8P and E8 by looking at all rows, compiled once per instruction set: `Lanes`
// has the vector types Floats and Ints; min(a, b), a < b ? a : b; and offer (below). Lanes hold
// consecutive rows and each sums coordinates in order, without fused operations, so all widths give
// the same codes. Lanes must have internal linkage.
//
// For a shift s and z = y - s, the row a under its best signs is at the distance
//     |z|^2 + |a|^2 - 2 <a, |z|>                  if as many entries of z are negative, mod 2, as
//                                                 the row's sum says; else
//     ... + 4 min_i a_i |z_i|                     with that coordinate's sign turned.
#pragma once

#include <bit>
#include <cstring>
#include <limits>

#include "codecs/e8p.h"

namespace quern {
namespace {  // NOLINT: internal linkage, since each source compiles its own

template <class Lanes>
struct E8pSearch {
  using Floats = typename Lanes::Floats;
  using Ints = typename Lanes::Ints;
  static constexpr int kLanes = sizeof(Floats) / 4;

  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  struct Best {
    Floats score;
    Ints row;
    void reset() {
      score = Floats{} - std::numeric_limits<float>::infinity();
      row = Ints{};
    }
    // Takes the candidate in the lanes where its score is above the best.
    void offer(Floats candidate, Ints candidate_row) {
      Lanes::offer(candidate, candidate_row, score, row);
    }
    // The lowest row of the largest score.
    int pick(float* top) const {
      float scores[kLanes];
      int32_t rows[kLanes];
      std::memcpy(scores, &score, sizeof score);
      std::memcpy(rows, &row, sizeof row);
      float best = scores[0];
      for (const float s : scores) best = s > best ? s : best;
      int lowest = 255;
      for (int l = 0; l < kLanes; ++l) {
        lowest = scores[l] == best && rows[l] < lowest ? rows[l] : lowest;
      }
      *top = best;
      return lowest;
    }
  };

  static Ints first_rows() {
    Ints rows = {};
    for (int l = 0; l < kLanes; ++l) rows[l] = l;
    return rows;
  }

  // y - 1/4 and y + 1/4, taken apart.
  struct Shifted {
    float magnitude[8];
    float norm = 0;
    unsigned negative = 0;  // bit i: entry i is below zero
    Shifted(const float* y, float shift) {
      for (int i = 0; i < 8; ++i) {
        const float z = y[i] - shift;
        magnitude[i] = z < 0 ? -z : z;
        norm += z * z;
        negative |= (z < 0 ? 1u : 0u) << i;
      }
    }
    unsigned parity() const { return static_cast<unsigned>(std::popcount(negative)) & 1u; }
  };

  static unsigned code_of(const E8pTables& t, const Shifted& z, int row, unsigned is_minus) {
    unsigned signs = z.negative;
    if (z.parity() != t.is_odd[row]) {
      int turned = 0;
      float least = std::numeric_limits<float>::infinity();
      for (int i = 0; i < 8; ++i) {
        const float product = t.rows[i][row] * z.magnitude[i];
        if (product < least) {
          least = product;
          turned = i;
        }
      }
      signs ^= 1u << turned;
    }
    signs ^= static_cast<unsigned>(t.is_odd[row]) << 7;  // relative to the stored row
    return static_cast<unsigned>(row) << 8 | (signs ^ is_minus);
  }

  static unsigned nearest_one(const E8pTables& t, const float* y) {
    const Shifted plus(y, 0.25f), minus(y, -0.25f);
    const float *flips_plus = t.flips[plus.parity()], *flips_minus = t.flips[minus.parity()];
    Best best_plus, best_minus;
    best_plus.reset();
    best_minus.reset();
    Ints rows = first_rows();
    for (int r = 0; r < 256; r += kLanes, rows += kLanes) {
      Floats sum_plus = {}, sum_minus = {};
      Floats least_plus = Floats{} + std::numeric_limits<float>::infinity();
      Floats least_minus = least_plus;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const Floats a = load(t.rows[i] + r);
        const Floats p = a * plus.magnitude[i], m = a * minus.magnitude[i];
        sum_plus += p;
        sum_minus += m;
        least_plus = Lanes::min(p, least_plus);
        least_minus = Lanes::min(m, least_minus);
      }
      const Floats norm = load(t.norms + r);
      best_plus.offer(2.0f * sum_plus - norm - load(flips_plus + r) * least_plus, rows);
      best_minus.offer(2.0f * sum_minus - norm - load(flips_minus + r) * least_minus, rows);
    }
    float score_plus, score_minus;
    const int row_plus = best_plus.pick(&score_plus), row_minus = best_minus.pick(&score_minus);
    if (minus.norm - score_minus < plus.norm - score_plus) return code_of(t, minus, row_minus, 1);
    return code_of(t, plus, row_plus, 0);
  }

  static void nearest(const E8pTables& t, const float* y, int64_t n, uint16_t* codes) {
    for (int64_t v = 0; v < n; ++v) codes[v] = static_cast<uint16_t>(nearest_one(t, y + 8 * v));
  }

  static void nearest_e8(const E8pTables& t, const float* y, int64_t n, uint8_t* codes) {
    for (int64_t v = 0; v < n; ++v, y += 8) {
      Best best;
      best.reset();
      Ints rows = first_rows();
      for (int r = 0; r < 256; r += kLanes, rows += kLanes) {
        Floats sum = {};
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sum += load(t.e8_rows[i] + r) * y[i];
        best.offer(2.0f * sum - load(t.e8_norms + r), rows);
      }
      float score;
      codes[v] = static_cast<uint8_t>(best.pick(&score));
    }
  }
};

}  // namespace
}  // namespace quern
