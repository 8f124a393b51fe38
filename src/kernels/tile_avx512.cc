// SPDX-License-Identifier: Apache-2.0
// dot_tile in registers: kX rows of x times kW rows of w, one register of 16 running sums for each
// pair. 4 x 6 pairs keep 24 sums and 5 operands in 32 registers and load 10 vectors for 24 fused
// multiply-adds. Four rows of sums are reduced together by transposing: each step adds the same
// lanes as the tree of kernels.h, l + (l + 8), then 4, 2, 1, for 16 sums at once.
//
// Long rows go in stretches of 1024, so that six rows of w stay in the first cache while 64 rows of
// x pass out of the second; the sums wait in memory between stretches (their order does not
// change). At k = 4096 this is worth 15 to 40 % on tiles of 16 to 512 rows of x; stretches of 512
// and 2048 gain less.
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

  // From row i of x and row j of w on.
  Operands at(int64_t i, int64_t j) const {
    return {x + i * ld_x, ld_x, w + j * ld_w, ld_w, k, y + i * ld_y + j, ld_y};
  }
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
inline void clear(__m512 (&sum)[kX][kW]) {
  for (int i = 0; i < kX; ++i) {
    for (int j = 0; j < kW; ++j) sum[i][j] = _mm512_setzero_ps();
  }
}

// Adds elements [p, end) of the rows; only the end of the rows may cut a vector.
template <int kX, int kW>
inline void accumulate(const Operands& o, int64_t p, int64_t end, __m512 (&sum)[4][kW]) {
  for (; p + 16 <= end; p += 16) {
    __m512 x[kX];
    for (int i = 0; i < kX; ++i) x[i] = _mm512_loadu_ps(o.x + i * o.ld_x + p);
    for (int j = 0; j < kW; ++j) {
      const __m512 w = _mm512_loadu_ps(o.w + j * o.ld_w + p);
      for (int i = 0; i < kX; ++i) sum[i][j] = _mm512_fmadd_ps(x[i], w, sum[i][j]);
    }
  }
  if (p == end) return;
  const auto rest = static_cast<__mmask16>((1u << (end - p)) - 1);
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

// Reduces kX <= 4 by kW in {1, 2, 4, 6} sums and stores them.
template <int kX, int kW>
inline void finish(const Operands& o, const __m512 (&sum)[4][kW]) {
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

template <int kX, int kW>
inline void tile(const Operands& o) {
  __m512 sum[4][kW];
  clear(sum);
  accumulate<kX, kW>(o, 0, o.k, sum);
  finish<kX, kW>(o, sum);
}

template <int kX>
void strip(Operands o, int64_t n_w) {
  for (; n_w >= 4; n_w -= 4, o = o.at(0, 4)) tile<kX, 4>(o);
  if (n_w >= 2) {
    tile<kX, 2>(o);
    o = o.at(0, 2);
  }
  if (n_w % 2 != 0) tile<kX, 1>(o);
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
    o = o.at(0, 8);
  }
  strip<1>(o, n_w);
}

constexpr int64_t kStretch = 1024;
constexpr int kMaxFours = 16;  // rows of x that pass together: 64, 256 KiB of a stretch
constexpr int kMaxSixes = 4;   // rows of w they meet: 24, whose sums wait in 96 KiB

// Rows of x in n_fours fours by rows of w in n_sixes sixes.
void long_rows(const Operands& o, int64_t n_fours, int64_t n_sixes) {
  alignas(64) float waiting[kMaxSixes][kMaxFours][4][6][16];
  for (int64_t p = 0; p < o.k; p += kStretch) {
    const bool is_first = p == 0, is_last = p + kStretch >= o.k;
    for (int64_t s = 0; s < n_sixes; ++s) {
      for (int64_t f = 0; f < n_fours; ++f) {
        const Operands part = o.at(4 * f, 6 * s);
        __m512 sum[4][6];
        clear(sum);
        for (int i = 0; i < 4 && !is_first; ++i) {
          for (int j = 0; j < 6; ++j) sum[i][j] = _mm512_load_ps(waiting[s][f][i][j]);
        }
        accumulate<4, 6>(part, p, is_last ? o.k : p + kStretch, sum);
        if (is_last) {
          finish<4, 6>(part, sum);
          continue;
        }
        for (int i = 0; i < 4; ++i) {
          for (int j = 0; j < 6; ++j) _mm512_store_ps(waiting[s][f][i][j], sum[i][j]);
        }
      }
    }
  }
}

// All fours of x by all sixes of w.
void whole_tiles(const Operands& o, int64_t n_fours, int64_t n_sixes) {
  if (o.k > kStretch + kStretch / 2 && n_fours > 1) {
    for (int64_t s = 0; s < n_sixes; s += kMaxSixes) {
      for (int64_t f = 0; f < n_fours; f += kMaxFours) {
        long_rows(o.at(4 * f, 6 * s), n_fours - f < kMaxFours ? n_fours - f : kMaxFours,
                  n_sixes - s < kMaxSixes ? n_sixes - s : kMaxSixes);
      }
    }
    return;
  }
  // Six rows of w stay in the first cache while all of x passes.
  for (int64_t s = 0; s < n_sixes; ++s) {
    for (int64_t f = 0; f < n_fours; ++f) tile<4, 6>(o.at(4 * f, 6 * s));
  }
}

void dot_tile(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w, int64_t n_w,
              int64_t k, float* y, int64_t ld_y) {
  const Operands o{x, ld_x, w, ld_w, k, y, ld_y};
  if (n_x == 1) return one_row(o, n_w);
  const int64_t n_fours = n_x / 4, n_sixes = n_w / 6;
  whole_tiles(o, n_fours, n_sixes);
  for (int64_t f = 0; f < n_fours; ++f) strip<4>(o.at(4 * f, 6 * n_sixes), n_w % 6);
  const Operands rest = o.at(4 * n_fours, 0);
  if (n_x % 4 == 3) strip<3>(rest, n_w);
  if (n_x % 4 == 2) strip<2>(rest, n_w);
  if (n_x % 4 == 1) strip<1>(rest, n_w);
}

}  // namespace

void fill_tile_avx512(KernelTable& table) { table.dot_tile = dot_tile; }

}  // namespace quern
