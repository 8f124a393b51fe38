// SPDX-License-Identifier: Apache-2.0
// The kernels over lanes (see lanes.h) that keep blocks of a matrix in registers.
#pragma once

#include <cstdint>

namespace quern {

template <class V>
struct BlockKernels {
  // kX rows of x by kC vectors of columns of w: the sums of lanes l, l + kStep, l + 2 kStep, ... of
  // `dot`, by that part of its tree.
  template <int kX, int kC, int kStep>
  [[gnu::always_inline]] static inline void turned_lanes(const float* x, int64_t ld_x,
                                                         const float* w, int64_t ld_w, int64_t k,
                                                         int l, V (&sum)[kX][kC]) {
    if constexpr (kStep == 16) {
      for (int i = 0; i < kX; ++i) {
        for (int c = 0; c < kC; ++c) sum[i][c] = V::set(0);
      }
      for (int64_t p = l; p < k; p += 16) {
        V row[kC];
        for (int c = 0; c < kC; ++c) row[c] = V::load(w + p * ld_w + 16 * c);
        for (int i = 0; i < kX; ++i) {
          const V factor = V::set(x[i * ld_x + p]);
          for (int c = 0; c < kC; ++c) sum[i][c] = V::fma(factor, row[c], sum[i][c]);
        }
      }
      if (k % 16 == 0 || l < k % 16) return;
      for (int i = 0; i < kX; ++i) {  // the padding of a tail turns -0 to +0
        for (int c = 0; c < kC; ++c) sum[i][c] = V::add(sum[i][c], V::set(0));
      }
    } else {
      V other[kX][kC];
      turned_lanes<kX, kC, 2 * kStep>(x, ld_x, w, ld_w, k, l, sum);
      turned_lanes<kX, kC, 2 * kStep>(x, ld_x, w, ld_w, k, l + kStep, other);
      for (int i = 0; i < kX; ++i) {
        for (int c = 0; c < kC; ++c) sum[i][c] = V::add(sum[i][c], other[i][c]);
      }
    }
  }
  template <int kX>
  static void turned_strip(const float* x, int64_t ld_x, const float* w, int64_t ld_w, int64_t n_w,
                           int64_t k, float* y, int64_t ld_y) {
    constexpr int kC = V::kTurnedColumns;
    for (int64_t j = 0; j < n_w; j += 16 * kC) {
      V sum[kX][kC];
      turned_lanes<kX, kC, 1>(x, ld_x, w + j, ld_w, k, 0, sum);
      for (int i = 0; i < kX; ++i) {
        for (int c = 0; c < kC; ++c) sum[i][c].store(y + i * ld_y + j + 16 * c);
      }
    }
  }
  static void dot_turned(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w,
                         int64_t n_w, int64_t k, float* y, int64_t ld_y) {
    int64_t i = 0;
    constexpr int kX = V::kTurnedRows;
    for (; i + kX <= n_x; i += kX) {
      turned_strip<kX>(x + i * ld_x, ld_x, w, ld_w, n_w, k, y + i * ld_y, ld_y);
    }
    for (; i < n_x; ++i) {
      turned_strip<1>(x + i * ld_x, ld_x, w, ld_w, n_w, k, y + i * ld_y, ld_y);
    }
  }

  // kY rows of y by kC vectors of columns stay in registers while p runs.
  template <int kY, int kC>
  static inline void axpy_rows_block(const float* a, int64_t ld_a, const float* v, int64_t ld_v,
                                     int64_t n_v, float* y, int64_t ld_y) {
    V sum[kY][kC];
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c] = V::load(y + i * ld_y + 16 * c);
    }
    for (int64_t p = 0; p < n_v; ++p) {
      V row[kC];
      for (int c = 0; c < kC; ++c) row[c] = V::load(v + p * ld_v + 16 * c);
      for (int i = 0; i < kY; ++i) {
        const V factor = V::set(a[i * ld_a + p]);
        for (int c = 0; c < kC; ++c) sum[i][c] = V::fma(factor, row[c], sum[i][c]);
      }
    }
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c].store(y + i * ld_y + 16 * c);
    }
  }
  template <int kY>
  static inline void axpy_rows_strip(const float* a, int64_t ld_a, const float* v, int64_t ld_v,
                                     int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    int64_t j = 0;
    constexpr int kC = V::kBlockColumns;
    for (; j + 16 * kC <= n; j += 16 * kC) {
      axpy_rows_block<kY, kC>(a, ld_a, v + j, ld_v, n_v, y + j, ld_y);
    }
    for (; j + 16 <= n; j += 16) {
      axpy_rows_block<kY, 1>(a, ld_a, v + j, ld_v, n_v, y + j, ld_y);
    }
    if (j == n) return;
    for (int i = 0; i < kY; ++i) {
      V sum = V::load_first(y + i * ld_y + j, static_cast<int>(n - j));
      for (int64_t p = 0; p < n_v; ++p) {
        const V row = V::load_first(v + p * ld_v + j, static_cast<int>(n - j));
        sum = V::fma(V::set(a[i * ld_a + p]), row, sum);
      }
      sum.store_first(y + i * ld_y + j, static_cast<int>(n - j));
    }
  }
  static void axpy_rows(const float* a, int64_t ld_a, int64_t n_y, const float* v, int64_t ld_v,
                        int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    int64_t i = 0;
    constexpr int kY = V::kBlockRows;
    for (; i + kY <= n_y; i += kY) {
      axpy_rows_strip<kY>(a + i * ld_a, ld_a, v, ld_v, n_v, n, y + i * ld_y, ld_y);
    }
    for (; i < n_y; ++i) {
      axpy_rows_strip<1>(a + i * ld_a, ld_a, v, ld_v, n_v, n, y + i * ld_y, ld_y);
    }
  }
};

}  // namespace quern
