// SPDX-License-Identifier: Apache-2.0
// Hadamard transforms over lanes (see lanes.h): as many stages as registers allow pass over a row
// at once.
//
// V has besides: butterfly<h>(v), and kFwhtStages, the stages of 2^kFwhtStages vectors at once.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/kernels.h"

namespace quern {

template <class V>
struct HadamardKernels {
  // Stages h = 1, 2, 4, 8 inside one vector.
  [[gnu::always_inline]] static inline V within(V v, int log2_n) {
    if (log2_n > 0) v = V::template butterfly<1>(v);
    if (log2_n > 1) v = V::template butterfly<2>(v);
    if (log2_n > 2) v = V::template butterfly<4>(v);
    if (log2_n > 3) v = V::template butterfly<8>(v);
    return v;
  }
  // Stages from one vector to the next.
  template <int kN>
  [[gnu::always_inline]] static inline void across(V (&v)[kN]) {
#pragma GCC unroll 4
    for (int h = 1; h < kN; h *= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) {
        if ((i & h) != 0) continue;
        const V a = v[i], b = v[i + h];
        v[i] = V::add(a, b);
        v[i + h] = V::sub(a, b);
      }
    }
  }

  // Stages 1 .. 8 and kStages more of consecutive vectors; each result times `factor`.
  template <int kStages, bool kSigned>
  static inline void first_pass(int64_t n, const float* signs, V factor, const float* x, float* y) {
    constexpr int kN = 1 << kStages;
    for (int64_t i = 0; i < n; i += 16 * kN) {
      V v[kN];
#pragma GCC unroll 16
      for (int j = 0; j < kN; ++j) {
        v[j] = V::load(x + i + 16 * j);
        if (kSigned) v[j] = V::mul(v[j], V::load(signs + i + 16 * j));
        v[j] = within(v[j], 4);
      }
      across(v);
#pragma GCC unroll 16
      for (int j = 0; j < kN; ++j) V::mul(v[j], factor).store(y + i + 16 * j);
    }
  }
  template <bool kSigned>
  static inline void first_pass(int stages, int64_t n, const float* signs, V factor, const float* x,
                                float* y) {
    if (stages == 0) return first_pass<0, kSigned>(n, signs, factor, x, y);
    if (stages == 1) return first_pass<1, kSigned>(n, signs, factor, x, y);
    if (stages == 2) return first_pass<2, kSigned>(n, signs, factor, x, y);
    if constexpr (V::kFwhtStages > 2) {
      if (stages == 3) return first_pass<3, kSigned>(n, signs, factor, x, y);
    }
    if constexpr (V::kFwhtStages > 3) return first_pass<4, kSigned>(n, signs, factor, x, y);
  }

  // Stages h, 2 h, ... over 2^kStages stretches of h values.
  template <int kStages>
  static inline void pass(int64_t n, int64_t h, V factor, const float* x, float* y) {
    constexpr int kN = 1 << kStages;
    for (int64_t start = 0; start < n; start += kN * h) {
      int64_t i = start;
      for (; i + 16 <= start + h; i += 16) {
        V v[kN];
#pragma GCC unroll 16
        for (int j = 0; j < kN; ++j) v[j] = V::load(x + i + j * h);
        across(v);
#pragma GCC unroll 16
        for (int j = 0; j < kN; ++j) V::mul(v[j], factor).store(y + i + j * h);
      }
      if (i == start + h) continue;
      const int rest = static_cast<int>(start + h - i);
      V v[kN];
      for (int j = 0; j < kN; ++j) v[j] = V::load_first(x + i + j * h, rest);
      across(v);
      for (int j = 0; j < kN; ++j) V::mul(v[j], factor).store_first(y + i + j * h, rest);
    }
  }
  // The last `stages` stages of n values, the first of them at distance h.
  static inline void passes(int stages, int64_t n, int64_t h, float scale, const float* x,
                            float* y) {
    while (stages > 0) {
      const int now = std::min(stages, V::kFwhtStages);
      stages -= now;
      const V factor = V::set(stages == 0 ? scale : 1.0f);  // times 1 changes nothing
      if (now == 1) pass<1>(n, h, factor, x, y);
      if (now == 2) pass<2>(n, h, factor, x, y);
      if constexpr (V::kFwhtStages > 2) {
        if (now == 3) pass<3>(n, h, factor, x, y);
      }
      if constexpr (V::kFwhtStages > 3) {
        if (now == 4) pass<4>(n, h, factor, x, y);
      }
      h <<= now;
      x = y;
    }
  }

  static void fwht(int log2_n, const float* signs, float scale, const float* x, float* y) {
    const int64_t n = int64_t{1} << log2_n;
    if (log2_n < 4) {
      const int count = static_cast<int>(n);
      V v = V::load_first(x, count);
      if (signs != nullptr) v = V::mul(v, V::load_first(signs, count));
      V::mul(within(v, log2_n), V::set(scale)).store_first(y, count);
      return;
    }
    const int first = std::min(log2_n - 4, V::kFwhtStages), rest = log2_n - 4 - first;
    const V factor = V::set(rest == 0 ? scale : 1.0f);
    if (signs != nullptr) {
      first_pass<true>(first, n, signs, factor, x, y);
    } else {
      first_pass<false>(first, n, signs, factor, x, y);
    }
    passes(rest, n, int64_t{16} << first, scale, y, y);
  }

  static void fwht_rows(int log2_n, int64_t width, float scale, const float* x, float* y) {
    if (log2_n > 0) return passes(log2_n, width << log2_n, width, scale, x, y);
    int64_t i = 0;
    const V factor = V::set(scale);
    for (; i + 16 <= width; i += 16) V::mul(V::load(x + i), factor).store(y + i);
    if (i == width) return;
    const int rest = static_cast<int>(width - i);
    V::mul(V::load_first(x + i, rest), factor).store_first(y + i, rest);
  }

  // ---- Sums over Had_K. The eight sums of each four rows, up to the sign of the first, are made
  // once for all rows of the result.

  static constexpr int64_t kGroups = 12;  // at once: with four vectors 24 KB

  // Loads and stores kC vectors, of which the last has `rest` lanes where that is not 16.
  template <int kC>
  struct Columns {
    int rest;
    [[gnu::always_inline]] V load(const float* p, int c) const {
      return c + 1 < kC || rest == 16 ? V::load(p + 16 * c) : V::load_first(p + 16 * c, rest);
    }
    [[gnu::always_inline]] void store(V v, float* p, int c) const {
      if (c + 1 < kC || rest == 16) {
        v.store(p + 16 * c);
      } else {
        v.store_first(p + 16 * c, rest);
      }
    }
  };

  template <int kC>
  static inline void sums_of_four(const float* x, int64_t ld, Columns<kC> columns, float* sums) {
    for (int c = 0; c < kC; ++c) {
      const V a = columns.load(x, c), b = columns.load(x + ld, c);
      const V d = columns.load(x + 2 * ld, c), e = columns.load(x + 3 * ld, c);
      const V first[2] = {V::add(a, b), V::sub(a, b)};
      const V sum = V::add(d, e), difference = V::sub(d, e);
      for (int i = 0; i < 2; ++i) {
        float* to = sums + 16 * (kC * i + c);
        V::add(first[i], sum).store(to);
        V::sub(first[i], difference).store(to + 16 * kC * 2);
        V::add(first[i], difference).store(to + 16 * kC * 4);
        V::sub(first[i], sum).store(to + 16 * kC * 6);
      }
    }
  }

  // Rows i .. i + kY - 1 of the result: += groups [first, last).
  template <int kY, int kC>
  static inline void add_groups(const HadamardTerms& terms, int64_t i, int64_t first, int64_t last,
                                const float* sums, Columns<kC> columns, float* y, int64_t ld) {
    const int64_t n_groups = terms.k / 4;
    V total[kY][kC];
    for (int r = 0; r < kY; ++r) {
      for (int c = 0; c < kC; ++c) {
        total[r][c] = first == 0 ? V::set(0) : columns.load(y + r * ld, c);
      }
    }
    for (int64_t g = first; g < last; ++g) {
      for (int r = 0; r < kY; ++r) {
        const int64_t at = (i + r) * n_groups + g;
        const V sign = V::set(terms.sign[at]);
        const float* sum = sums + ((g - first) * 8 + terms.pattern[at]) * 16 * kC;
        for (int c = 0; c < kC; ++c) {
          total[r][c] = V::fma(sign, V::load(sum + 16 * c), total[r][c]);
        }
      }
    }
    for (int r = 0; r < kY; ++r) {
      for (int c = 0; c < kC; ++c) columns.store(total[r][c], y + r * ld, c);
    }
  }

  template <int kC>
  static inline void mix_columns(const HadamardTerms& terms, const float* x, int64_t width,
                                 Columns<kC> columns, float* y) {
    alignas(64) float sums[kGroups * 8 * 16 * kC];
    const int64_t n_groups = terms.k / 4;
    for (int64_t first = 0; first < n_groups; first += kGroups) {
      const int64_t last = std::min(first + kGroups, n_groups);
      for (int64_t g = first; g < last; ++g) {
        sums_of_four<kC>(x + 4 * g * width, width, columns, sums + (g - first) * 8 * 16 * kC);
      }
      for (int64_t i = 0; i < terms.k; i += 2) {
        add_groups<2, kC>(terms, i, first, last, sums, columns, y + i * width, width);
      }
    }
  }

  static void hadamard_mix(const HadamardTerms& terms, const float* x, int64_t width, float* y) {
    constexpr int kC = V::kMixColumns;
    int64_t j = 0;
    for (; j + 16 * kC <= width; j += 16 * kC) {
      mix_columns<kC>(terms, x + j, width, {16}, y + j);
    }
    for (; j < width; j += 16) {
      const int rest = static_cast<int>(std::min<int64_t>(16, width - j));
      mix_columns<1>(terms, x + j, width, {rest}, y + j);
    }
  }

  static void fill(KernelTable& table) {
    table.fwht = fwht;
    table.fwht_rows = fwht_rows;
    table.hadamard_mix = hadamard_mix;
  }
};

}  // namespace quern
