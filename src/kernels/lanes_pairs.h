// SPDX-License-Identifier: Apache-2.0
// pair_product.h over lanes (see lanes.h).
#pragma once

#include <cstdint>

#include "kernels/pair_product.h"

namespace quern {

// V has kPairRows, kPairColumns and the two halves of sixteen pairs at p, first_of_pairs(p) and
// second_of_pairs(p).
template <class V>
struct PairKernels {
  // Sixteen pairs at p, or its first n.
  template <bool kIsCut>
  static inline void load(const uint16_t* p, int n, V& first, V& second) {
    uint16_t cut[32] = {};
    if (kIsCut) __builtin_memcpy(cut, p, 4 * static_cast<size_t>(n));
    first = V::first_of_pairs(kIsCut ? cut : p);
    second = V::second_of_pairs(kIsCut ? cut : p);
  }
  template <bool kIsCut>
  static inline void add(V sum, int n, bool is_first, float* y) {
    if (kIsCut) {
      V::add(is_first ? V::set(0) : V::load_first(y, n), sum).store_first(y, n);
    } else {
      V::add(is_first ? V::set(0) : V::load(y), sum).store(y);
    }
  }

  // The terms of a group as floats.
  static inline void unpack(const uint16_t* packed, float* a) {
    const char* from = reinterpret_cast<const char*>(packed);
    for (int64_t t = 0; t < kPairGroup; t += 16) V::from_bf16(from + 2 * t).store(a + t);
  }

  // One block, rows [i, i + kY) and columns [j, j + 16 kC), or j + n_cut where kIsCut, kC 1.
  template <int kY, int kC, bool kIsCut = false>
  static inline void tile(const PairProduct& p, int64_t b, int64_t i, int64_t j, int n_cut = 16) {
    const int64_t place = i * p.ld_a + b * p.step_a;
    float* y = p.y + i * p.ld_y + b * p.step_y + j;
    const uint16_t* v = p.blocks[b] + 2 * j;
    bool is_first = p.step_y != 0 || b == 0;
    for (int64_t t = 0; t < p.n_v; is_first = false) {
      const int64_t end = t + kPairGroup < p.n_v ? t + kPairGroup : p.n_v;
      float unpacked[kY][kPairGroup];
      const float* a = p.a + place + t;
      int64_t ld_a = p.ld_a;
      if (p.packed_a != nullptr) {
        for (int r = 0; r < kY; ++r) unpack(p.packed_a + place + r * p.ld_a + t, unpacked[r]);
        a = unpacked[0];
        ld_a = kPairGroup;
      }
      V even[kY][kC], odd[kY][kC];
      for (int r = 0; r < kY; ++r) {
        for (int c = 0; c < kC; ++c) even[r][c] = odd[r][c] = V::set(0);
      }
      for (; t < end; t += 2, a += 2, v += 2 * p.n) {
        V first[kC], second[kC];
        for (int c = 0; c < kC; ++c) load<kIsCut>(v + 32 * c, n_cut, first[c], second[c]);
        // A cache is read once, front to back, faster than the processor guesses.
        for (int c = 0; c < kC; ++c) __builtin_prefetch(v + p.n * p.n_v + 32 * c);
        for (int r = 0; r < kY; ++r) {
          const V at_first = V::set(a[r * ld_a]), at_second = V::set(a[r * ld_a + 1]);
          for (int c = 0; c < kC; ++c) even[r][c] = V::fma(at_first, first[c], even[r][c]);
          for (int c = 0; c < kC; ++c) odd[r][c] = V::fma(at_second, second[c], odd[r][c]);
        }
      }
      for (int r = 0; r < kY; ++r) {
        for (int c = 0; c < kC; ++c) {
          add<kIsCut>(V::add(even[r][c], odd[r][c]), n_cut, is_first, y + r * p.ld_y + 16 * c);
        }
      }
    }
  }
  template <int kY>
  static inline void rows(const PairProduct& p, int64_t b, int64_t i) {
    int64_t j = 0;
    for (; j + 16 * V::kPairColumns <= p.n; j += 16 * V::kPairColumns) {
      tile<kY, V::kPairColumns>(p, b, i, j);
    }
    for (; j + 16 <= p.n; j += 16) tile<kY, 1>(p, b, i, j);
    if (j < p.n) tile<kY, 1, true>(p, b, i, j, static_cast<int>(p.n - j));
  }
  static void pair_product(const PairProduct& p) {
    for (int64_t b = 0; b < p.n_blocks; ++b) {
      int64_t i = 0;
      for (; i + V::kPairRows <= p.n_rows; i += V::kPairRows) rows<V::kPairRows>(p, b, i);
      for (; i < p.n_rows; ++i) rows<1>(p, b, i);
    }
  }
};

}  // namespace quern
