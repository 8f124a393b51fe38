// SPDX-License-Identifier: Apache-2.0
// subtract_rows over a type V of double lanes, compiled once per ISA. kY rows of y by kC vectors of
// columns stay in registers while p runs; the lines of y that the next rows need are fetched
// meanwhile, as y usually comes from memory and a and v from the caches.
//
// An element takes its terms in the order of p alone, so neither the width of V nor the position of
// a column in a vector shows in the result.
//
// V must have internal linkage (see vec_math.h). It has kLanes, kRows, kVectors (the block), load,
// store, load_first(p, n) (zeros beyond lane n), store_first(p, n), set(a) and
// subtract_product(a, b, c), which is fma(-a, b, c).
#pragma once

#include <cstdint>

#include "kernels/tables.h"

namespace quern {

template <class V>
struct SubtractRows {
  struct Operands {
    const double* a;
    int64_t ld_a;
    const double* v;
    int64_t ld_v;
    int64_t n_v;
    double* y;
    int64_t ld_y;
  };

  enum class Next { kRows, kNone };

  template <int kY, int kC>
  static inline void block(const Operands& o, Next next) {
    if (next == Next::kRows) {
      for (int i = kY; i < 2 * kY; ++i) {
        for (int c = 0; c < kC * V::kLanes; c += 8) __builtin_prefetch(o.y + i * o.ld_y + c, 1);
      }
    }
    V sum[kY][kC];
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c] = V::load(o.y + i * o.ld_y + c * V::kLanes);
    }
    for (int64_t p = 0; p < o.n_v; ++p) {
      V row[kC];
      for (int c = 0; c < kC; ++c) row[c] = V::load(o.v + p * o.ld_v + c * V::kLanes);
      for (int i = 0; i < kY; ++i) {
        const V factor = V::set(o.a[i * o.ld_a + p]);
        for (int c = 0; c < kC; ++c) sum[i][c] = V::subtract_product(factor, row[c], sum[i][c]);
      }
    }
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c].store(o.y + i * o.ld_y + c * V::kLanes);
    }
  }

  // The first n < kLanes columns.
  template <int kY>
  static inline void tail(const Operands& o, int n) {
    V sum[kY];
    for (int i = 0; i < kY; ++i) sum[i] = V::load_first(o.y + i * o.ld_y, n);
    for (int64_t p = 0; p < o.n_v; ++p) {
      const V row = V::load_first(o.v + p * o.ld_v, n);
      for (int i = 0; i < kY; ++i) {
        sum[i] = V::subtract_product(V::set(o.a[i * o.ld_a + p]), row, sum[i]);
      }
    }
    for (int i = 0; i < kY; ++i) sum[i].store_first(o.y + i * o.ld_y, n);
  }

  // n_y rows, kY at a time and then one by one.
  template <int kY, class Body>
  static inline void rows(Operands o, int64_t n_y, Body body) {
    for (; n_y >= kY; n_y -= kY, o.a += kY * o.ld_a, o.y += kY * o.ld_y) {
      body.template operator()<kY>(o, n_y >= 2 * kY ? Next::kRows : Next::kNone);
    }
    if constexpr (kY > 1) rows<1>(o, n_y, body);
  }

  static void run(const double* a, int64_t ld_a, int64_t n_y, const double* v, int64_t ld_v,
                  int64_t n_v, int64_t n, double* y, int64_t ld_y) {
    Operands o{a, ld_a, v, ld_v, n_v, y, ld_y};
    const auto advance = [&o, &n](int columns) {
      o.v += columns;
      o.y += columns;
      n -= columns;
    };
    constexpr int kWide = V::kVectors * V::kLanes;
    for (; n >= kWide; advance(kWide)) {
      rows<V::kRows>(
          o, n_y, []<int kY>(const Operands& at, Next next) { block<kY, V::kVectors>(at, next); });
    }
    for (; n >= V::kLanes; advance(V::kLanes)) {
      rows<V::kRows>(o, n_y, []<int kY>(const Operands& at, Next next) { block<kY, 1>(at, next); });
    }
    if (n == 0) return;
    rows<V::kRows>(o, n_y,
                   [n]<int kY>(const Operands& at, Next) { tail<kY>(at, static_cast<int>(n)); });
  }
};

}  // namespace quern
