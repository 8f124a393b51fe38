// SPDX-License-Identifier: Apache-2.0
// The kernels over lanes (see lanes.h) that keep blocks of a matrix in registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quern {

template <class V>
struct BlockKernels {
  // Sixteen of a row of floats or of halves, or its first n.
  static inline V load(const float* p) { return V::load(p); }
  static inline V load(const uint16_t* p) { return V::from_half(reinterpret_cast<const char*>(p)); }
  static inline V load_first(const float* p, int n) { return V::load_first(p, n); }
  static inline V load_first(const uint16_t* p, int n) {
    uint16_t tail[16] = {};
    __builtin_memcpy(tail, p, 2 * static_cast<size_t>(n));
    return load(tail);
  }

  // Lines of kC vectors that the next block of a store begins with at the same place: a cache is
  // read once, front to back, faster than the processor guesses. Floats lie in the first cache.
  template <int kC>
  static inline void fetch_ahead(const uint16_t* p) {
    for (int c = 0; c < kC; c += 2) __builtin_prefetch(p + 16 * c);
  }
  template <int kC>
  static inline void fetch_ahead(const float* /*p*/) {}

  // kY rows of y by kC vectors of columns stay in registers while p runs.
  template <int kY, int kC, class T>
  static inline void axpy_rows_block(const float* a, int64_t ld_a, const T* v, int64_t ld_v,
                                     int64_t n_v, float* y, int64_t ld_y) {
    V sum[kY][kC];
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c] = V::load(y + i * ld_y + 16 * c);
    }
    for (int64_t p = 0; p < n_v; ++p) {
      V row[kC];
      for (int c = 0; c < kC; ++c) row[c] = load(v + p * ld_v + 16 * c);
      fetch_ahead<kC>(v + (p + n_v) * ld_v);
      for (int i = 0; i < kY; ++i) {
        const V factor = V::set(a[i * ld_a + p]);
        for (int c = 0; c < kC; ++c) sum[i][c] = V::fma(factor, row[c], sum[i][c]);
      }
    }
    for (int i = 0; i < kY; ++i) {
      for (int c = 0; c < kC; ++c) sum[i][c].store(y + i * ld_y + 16 * c);
    }
  }
  template <int kY, int kC, class T>
  static inline void axpy_rows_strip(const float* a, int64_t ld_a, const T* v, int64_t ld_v,
                                     int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    int64_t j = 0;
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
        const V row = load_first(v + p * ld_v + j, static_cast<int>(n - j));
        sum = V::fma(V::set(a[i * ld_a + p]), row, sum);
      }
      sum.store_first(y + i * ld_y + j, static_cast<int>(n - j));
    }
  }
  template <int kY, int kC, class T>
  static inline void axpy_rows_of(const float* a, int64_t ld_a, int64_t n_y, const T* v,
                                  int64_t ld_v, int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    int64_t i = 0;
    for (; i + kY <= n_y; i += kY) {
      axpy_rows_strip<kY, kC>(a + i * ld_a, ld_a, v, ld_v, n_v, n, y + i * ld_y, ld_y);
    }
    for (; i < n_y; ++i) {
      axpy_rows_strip<1, kC>(a + i * ld_a, ld_a, v, ld_v, n_v, n, y + i * ld_y, ld_y);
    }
  }
  static void axpy_rows(const float* a, int64_t ld_a, int64_t n_y, const float* v, int64_t ld_v,
                        int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    axpy_rows_of<V::kBlockRows, V::kBlockColumns>(a, ld_a, n_y, v, ld_v, n_v, n, y, ld_y);
  }
  static void axpy_rows_half(const float* a, int64_t ld_a, int64_t n_y, const void* v, int64_t ld_v,
                             int64_t n_v, int64_t n, float* y, int64_t ld_y) {
    const auto* halves = static_cast<const uint16_t*>(v);
    int64_t i = 0;
    for (; i + V::kHalfRows <= n_y; i += V::kHalfRows) {
      axpy_rows_strip<V::kHalfRows, V::kHalfColumns>(a + i * ld_a, ld_a, halves, ld_v, n_v, n,
                                                     y + i * ld_y, ld_y);
    }
    axpy_rows_of<V::kBlockRows, V::kBlockColumns>(a + i * ld_a, ld_a, n_y - i, halves, ld_v, n_v, n,
                                                  y + i * ld_y, ld_y);
  }
};

}  // namespace quern
