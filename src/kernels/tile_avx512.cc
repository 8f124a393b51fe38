// SPDX-License-Identifier: Apache-2.0
// dot_tile in registers: kX rows of x times kW rows of w, one register of 16 running sums for each
// pair. 4 x 6 pairs keep 24 sums and 5 operands in 32 registers and load 10 vectors for 24 fused
// multiply-adds. Four rows of sums are reduced together by transposing: each step adds the same
// lanes as the tree of kernels.h, l + (l + 8), then 4, 2, 1, for 16 sums at once.
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

// Steps l + 8 and l + 4 for four sums: block b of the result has the four partial sums of the b-th.
inline __m512 reduce_to_blocks(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),   // low halves of a, b
                                  _mm512_shuffle_f32x4(a, b, 0xee));  // high halves
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88),   // blocks 0, 2
                       _mm512_shuffle_f32x4(ab, cd, 0xdd));  // blocks 1, 3
}

// Step l + 2 for two such registers: each block becomes r0's two partial sums, then r1's.
inline __m512 reduce_pair(__m512 r0, __m512 r1) {
  const __m512 low =
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(r0), _mm512_castps_pd(r1)));
  const __m512 high =
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(r0), _mm512_castps_pd(r1)));
  return _mm512_add_ps(low, high);
}

// Step l + 1: lane q of block b of the result is the sum whose parts are in block b of r_q.
inline __m512 reduce_last(__m512 r01, __m512 r23) {
  return _mm512_add_ps(_mm512_shuffle_ps(r01, r23, 0x88), _mm512_shuffle_ps(r01, r23, 0xdd));
}

template <int kX, int kW>
inline void accumulate(const Operands& o, __m512 (&sum)[4][kW]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < kW; ++j) sum[i][j] = _mm512_setzero_ps();
  }
  int64_t p = 0;
  for (; p + 16 <= o.k; p += 16) {
    __m512 x[kX];
    for (int i = 0; i < kX; ++i) x[i] = _mm512_loadu_ps(o.x + i * o.ld_x + p);
    for (int j = 0; j < kW; ++j) {
      const __m512 w = _mm512_loadu_ps(o.w + j * o.ld_w + p);
      for (int i = 0; i < kX; ++i) sum[i][j] = _mm512_fmadd_ps(x[i], w, sum[i][j]);
    }
  }
  if (p == o.k) return;
  const auto rest = static_cast<__mmask16>((1u << (o.k - p)) - 1);
  __m512 x[kX];
  for (int i = 0; i < kX; ++i) x[i] = _mm512_maskz_loadu_ps(rest, o.x + i * o.ld_x + p);
  for (int j = 0; j < kW; ++j) {
    const __m512 w = _mm512_maskz_loadu_ps(rest, o.w + j * o.ld_w + p);
    for (int i = 0; i < kX; ++i) sum[i][j] = _mm512_fmadd_ps(x[i], w, sum[i][j]);
  }
}

inline __m128 block(__m512 v, int i) {
  switch (i) {
    case 0:
      return _mm512_castps512_ps128(v);
    case 1:
      return _mm512_extractf32x4_ps(v, 1);
    case 2:
      return _mm512_extractf32x4_ps(v, 2);
    default:
      return _mm512_extractf32x4_ps(v, 3);
  }
}

// kX <= 4 rows of x, kW in {1, 2, 4, 6} rows of w.
template <int kX, int kW>
inline void tile(const Operands& o) {
  __m512 sum[4][kW];
  accumulate<kX, kW>(o, sum);
  __m512 r[kW];
  for (int j = 0; j < kW; ++j) {
    r[j] = reduce_to_blocks(sum[0][j], sum[1][j], sum[2][j], sum[3][j]);
  }
  if constexpr (kW >= 4) {
    const __m512 four = reduce_last(reduce_pair(r[0], r[1]), reduce_pair(r[2], r[3]));
    for (int i = 0; i < kX; ++i) _mm_storeu_ps(o.y + i * o.ld_y, block(four, i));
  }
  if constexpr (kW % 4 != 0) {
    constexpr int kDone = kW / 4 * 4;
    const __m512 pair = reduce_pair(r[kDone], r[kW - 1]);
    const __m512 two = reduce_last(pair, pair);
    for (int i = 0; i < kX; ++i) {
      float* y = o.y + i * o.ld_y + kDone;
      if constexpr (kW - kDone == 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(y), block(two, i));
      } else {
        _mm_store_ss(y, block(two, i));
      }
    }
  }
}

template <int kX>
void strip(Operands o, int64_t n_w) {
  const auto advance = [&o](int n) {
    o.w += n * o.ld_w;
    o.y += n;
  };
  for (; n_w >= 4; n_w -= 4, advance(4)) tile<kX, 4>(o);
  if (n_w >= 2) {
    tile<kX, 2>(o);
    advance(2);
  }
  if (n_w % 2 != 0) tile<kX, 1>(o);
}

// Rows of x past the last whole four.
void last_rows(const Operands& o, int64_t n_x, int64_t n_w) {
  if (n_x == 3) strip<3>(o, n_w);
  if (n_x == 2) strip<2>(o, n_w);
  if (n_x == 1) strip<1>(o, n_w);
}

// One row of x: eight rows of w at once hide the latency of the sums. Sixteen measured slower (72
// against 110 GB/s out of the second cache): rows a multiple of 4 KiB apart share a cache set.
void one_row(Operands o, int64_t n_w) {
  for (; n_w >= 8; n_w -= 8) {
    __m512 sum[8];
    for (int j = 0; j < 8; ++j) sum[j] = _mm512_setzero_ps();
    int64_t p = 0;
    for (; p + 16 <= o.k; p += 16) {
      const __m512 x = _mm512_loadu_ps(o.x + p);
      for (int j = 0; j < 8; ++j) {
        sum[j] = _mm512_fmadd_ps(x, _mm512_loadu_ps(o.w + j * o.ld_w + p), sum[j]);
      }
    }
    if (p < o.k) {
      const auto rest = static_cast<__mmask16>((1u << (o.k - p)) - 1);
      const __m512 x = _mm512_maskz_loadu_ps(rest, o.x + p);
      for (int j = 0; j < 8; ++j) {
        const __m512 w = _mm512_maskz_loadu_ps(rest, o.w + j * o.ld_w + p);
        sum[j] = _mm512_fmadd_ps(x, w, sum[j]);
      }
    }
    __m512 r[4];
    for (int q = 0; q < 4; ++q) r[q] = reduce_to_blocks(sum[q], sum[4 + q], sum[q], sum[4 + q]);
    const __m512 all = reduce_last(reduce_pair(r[0], r[1]), reduce_pair(r[2], r[3]));
    _mm256_storeu_ps(o.y, _mm512_castps512_ps256(all));
    o.w += 8 * o.ld_w;
    o.y += 8;
  }
  strip<1>(o, n_w);
}

void dot_tile(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w, int64_t n_w,
              int64_t k, float* y, int64_t ld_y) {
  if (n_x == 1) return one_row({x, ld_x, w, ld_w, k, y, ld_y}, n_w);
  // Six rows of w stay in the first cache while all of x passes.
  int64_t j = 0;
  for (; j + 6 <= n_w; j += 6) {
    int64_t i = 0;
    for (; i + 4 <= n_x; i += 4) {
      tile<4, 6>({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y});
    }
    last_rows({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y}, n_x - i, 6);
  }
  int64_t i = 0;
  for (; i + 4 <= n_x; i += 4) {
    strip<4>({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y}, n_w - j);
  }
  last_rows({x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y}, n_x - i, n_w - j);
}

}  // namespace

void fill_tile_avx512(KernelTable& table) { table.dot_tile = dot_tile; }

}  // namespace quern
