// SPDX-License-Identifier: Apache-2.0
// dot_tile in registers, as tile_avx512.cc does it, with the sixteen running sums of a pair in two
// registers: 2 x 3 pairs keep 12 sums and 3 operands in 16 registers. Up to four sums are reduced
// together in the tree of kernels.h.
#include "kernels/intrinsics.h"
#include "kernels/tables.h"

namespace quern {
namespace {

struct Operands {
  const float* x;
  int64_t ld_x;
  const float* w;
  int64_t ld_w;
  int64_t k;
  float* y;
  int64_t ld_y;
};

inline __m256i first8(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The sums of two pairs, halves added already: block 0 gets a's four parts, block 1 b's.
inline __m256 reduce_to_blocks(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline __m256 reduce_pair(__m256 r0, __m256 r1) {
  const __m256d a = _mm256_castps_pd(r0), b = _mm256_castps_pd(r1);
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                       _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
}

inline __m256 reduce_last(__m256 r01, __m256 r23) {
  return _mm256_add_ps(_mm256_shuffle_ps(r01, r23, 0x88), _mm256_shuffle_ps(r01, r23, 0xdd));
}

inline void store_first(float* y, __m128 v, int n) {
  if (n == 4) {
    _mm_storeu_ps(y, v);
    return;
  }
  if (n >= 2) _mm_storel_pi(reinterpret_cast<__m64*>(y), v);
  if (n == 3) _mm_store_ss(y + 2, _mm_movehl_ps(v, v));
  if (n == 1) _mm_store_ss(y, v);
}

// kX <= 2 rows of x, kW <= 4 rows of w.
template <int kX, int kW>
inline void tile(const Operands& o) {
  __m256 lo[kX][kW], hi[kX][kW];
  for (int i = 0; i < kX; ++i) {
    for (int j = 0; j < kW; ++j) lo[i][j] = hi[i][j] = _mm256_setzero_ps();
  }
  int64_t p = 0;
  for (; p + 16 <= o.k; p += 16) {
    __m256 x[kX];
    for (int i = 0; i < kX; ++i) x[i] = _mm256_loadu_ps(o.x + i * o.ld_x + p);
    for (int j = 0; j < kW; ++j) {
      const __m256 w = _mm256_loadu_ps(o.w + j * o.ld_w + p);
      for (int i = 0; i < kX; ++i) lo[i][j] = _mm256_fmadd_ps(x[i], w, lo[i][j]);
    }
    for (int i = 0; i < kX; ++i) x[i] = _mm256_loadu_ps(o.x + i * o.ld_x + p + 8);
    for (int j = 0; j < kW; ++j) {
      const __m256 w = _mm256_loadu_ps(o.w + j * o.ld_w + p + 8);
      for (int i = 0; i < kX; ++i) hi[i][j] = _mm256_fmadd_ps(x[i], w, hi[i][j]);
    }
  }
  if (p < o.k) {
    const __m256i m0 = first8(o.k - p), m1 = first8(o.k - p - 8);
    for (int j = 0; j < kW; ++j) {
      const float* w = o.w + j * o.ld_w + p;
      const __m256 w0 = _mm256_maskload_ps(w, m0), w1 = _mm256_maskload_ps(w + 8, m1);
      for (int i = 0; i < kX; ++i) {
        const float* x = o.x + i * o.ld_x + p;
        lo[i][j] = _mm256_fmadd_ps(_mm256_maskload_ps(x, m0), w0, lo[i][j]);
        hi[i][j] = _mm256_fmadd_ps(_mm256_maskload_ps(x + 8, m1), w1, hi[i][j]);
      }
    }
  }
  __m256 r[4];
  for (int j = 0; j < 4; ++j) {
    const int from = j < kW ? j : kW - 1;
    r[j] = reduce_to_blocks(_mm256_add_ps(lo[0][from], hi[0][from]),
                            _mm256_add_ps(lo[kX - 1][from], hi[kX - 1][from]));
  }
  const __m256 all = reduce_last(reduce_pair(r[0], r[1]), reduce_pair(r[2], r[3]));
  store_first(o.y, _mm256_castps256_ps128(all), kW);
  if constexpr (kX == 2) store_first(o.y + o.ld_y, _mm256_extractf128_ps(all, 1), kW);
}

// One row of x by 2 kW rows of w would do as well; four rows (8 sums) already hide the latency of
// the sums where loads bound the loop.
template <int kX, int kW>
void strip(Operands o, int64_t n_w) {
  const auto advance = [&o](int n) {
    o.w += n * o.ld_w;
    o.y += n;
  };
  for (; n_w >= kW; n_w -= kW, advance(kW)) tile<kX, kW>(o);
  for (; n_w > 0; --n_w, advance(1)) tile<kX, 1>(o);
}

void dot_tile(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w, int64_t n_w,
              int64_t k, float* y, int64_t ld_y) {
  if (n_x == 1) return strip<1, 4>({x, ld_x, w, ld_w, k, y, ld_y}, n_w);
  // A few rows of w stay in the first cache while all of x passes.
  for (int64_t j = 0; j < n_w; j += 6) {
    const int64_t n = n_w - j < 6 ? n_w - j : 6;
    int64_t i = 0;
    for (; i + 2 <= n_x; i += 2) {
      strip<2, 3>({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y}, n);
    }
    if (i < n_x) {
      strip<1, 4>({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y}, n);
    }
  }
}

}  // namespace

void fill_tile_avx2(KernelTable& table) { table.dot_tile = dot_tile; }

}  // namespace quern
