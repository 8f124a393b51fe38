// SPDX-License-Identifier: Apache-2.0
// A lane is a column of the block: four of its rows meet four whole numbers of a row of a by VNNI.
// Rows are rounded sixteen sets at a time, whose maxima and sums are found side by side.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

constexpr int64_t kItems = 16;  // sets that are rounded together

// Lane i of the result is `op` over the lanes of v[i], as a tree: l and l + 8, then 4, 2, 1.
template <class Op>
inline __m512 reduce_16(const __m512 (&v)[kItems], Op op) {
  __m512 t[8];
  for (int i = 0; i < 8; ++i) {
    t[i] = op(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
              _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = op(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x88),
              _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    t[i] = op(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
              _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
  }
  t[0] = op(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd));
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(in_order, t[0]);
}

// A set: `size` numbers of a row, and where their whole numbers go.
struct Item {
  const float *a, *scale, *centre;
  uint8_t* q;
};

// As GroupRounding, of sixteen at once.
inline __m512 round_sets(__m512i largest, float most, float* steps, __mmask16 used,
                         __mmask16* is_number) {
  const __mmask16 is_special = _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(0x7f800000));
  *is_number = _mm512_mask_cmpge_epu32_mask(static_cast<__mmask16>(~is_special), largest,
                                            _mm512_set1_epi32((127 - 100) << 23));
  const __m512 top = _mm512_castsi512_ps(largest), levels = _mm512_set1_ps(most);
  const __m512 step = _mm512_maskz_div_ps(*is_number, top, levels);
  _mm512_mask_storeu_ps(steps, used, _mm512_mask_mov_ps(step, is_special, _mm512_set1_ps(NAN)));
  return _mm512_maskz_div_ps(*is_number, levels, top);
}

// kSize: numbers of a set, or 0 where only the block knows.
template <Sign kSign, bool kAcross, int64_t kSize>
class Rounder {
 public:
  explicit Rounder(const LevelBlock& b)
      : b_(b),
        size_(kSize > 0 ? kSize
              : kAcross ? b.rows
                        : b.group),
        n_groups_(b.n_groups()) {}

  void run(const float* a, int64_t ld_a, int64_t n, const LevelRows& rows) {
    const int64_t n_items = n * n_groups_, set = b_.planes * b_.rows;
    const float* centres = b_.centres != nullptr ? b_.centres : b_.scales;  // or any
    uint8_t* q = rows.q;
    Item items[kItems];
    for (int64_t first = 0, g = 0; first < n_items; first += kItems) {
      const int64_t count = std::min(kItems, n_items - first);
      for (int64_t k = 0; k < count; ++k) {
        if constexpr (kAcross) {
          items[k] = {a, b_.scales + g * b_.rows, centres + g * b_.rows, q + g * set};
        } else {
          items[k] = {a + g * b_.group, nullptr, nullptr, q + g * b_.group};
        }
        if (++g < n_groups_) continue;
        g = 0;
        a += ld_a;
        q += (kAcross ? n_groups_ : 1) * set;
      }
      round_items(items, count, rows, first);
    }
  }

 private:
  void round_items(const Item* items, int64_t count, const LevelRows& rows, int64_t first) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const auto used = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    __m512 largest[kItems], sums[kItems], counts[kItems];
    for (int64_t k = count; k < kItems; ++k) largest[k] = sums[k] = counts[k] = _mm512_setzero_ps();
    for (int64_t k = 0; k < count; ++k) {
      __m512i top = _mm512_setzero_si512();
      __m512 sum = _mm512_setzero_ps();
      const int64_t size = kSize > 0 ? kSize : size_;
#pragma GCC unroll 4
      for (int64_t r = 0; r < size; r += 16) {
        const __m512 x = _mm512_loadu_ps(items[k].a + r);
        __m512 t = x;
        if constexpr (kAcross) {
          const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
          t = _mm512_maskz_mul_ps(counts, x, _mm512_loadu_ps(items[k].scale + r));
          _mm512_store_ps(scaled_ + k * size + r, t);
          sum = _mm512_mask3_fmadd_ps(x, _mm512_loadu_ps(items[k].centre + r), sum, counts);
        } else {
          sum = _mm512_add_ps(sum, x);
        }
        top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_castps_si512(t), magnitude));
      }
      largest[k] = _mm512_castsi512_ps(top);
      sums[k] = sum;
    }
    const __m512 tops = reduce_16(largest, [](__m512 a, __m512 b) {
      return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
    });
    __mmask16 is_number;
    const __m512 to_levels =
        round_sets(_mm512_castps_si512(tops), b_.most(), rows.steps + first, used, &is_number);
    __m512 total = _mm512_setzero_ps();
    if (!kAcross || b_.centres != nullptr) {
      total = reduce_16(sums, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
    }
    _mm512_mask_storeu_ps(rows.sums + first, used, total);
    alignas(64) float factors[kItems];
    _mm512_store_ps(factors, to_levels);
    const auto write_all = [&](auto planes) {
      for (int64_t k = 0; k < count; ++k) {
        const float* t = kAcross ? scaled_ + k * size_ : items[k].a;
        const auto mask = static_cast<__mmask16>((is_number >> k & 1) != 0 ? 0xffff : 0);
        counts[k] =
            _mm512_castsi512_ps(write<decltype(planes)::value>(t, factors[k], mask, items[k].q));
      }
    };
    if (b_.planes == 1) {
      write_all(std::integral_constant<int, 1>());
    } else {
      write_all(std::integral_constant<int, 2>());
    }
    __m512i offsets = _mm512_setzero_si512();
    if (b_.zero != 0) {
      offsets = _mm512_castps_si512(reduce_16(counts, [](__m512 a, __m512 b) {
        return _mm512_castsi512_ps(
            _mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
      }));
      offsets = _mm512_mullo_epi32(offsets, _mm512_set1_epi32(-b_.zero));
    }
    _mm512_mask_storeu_epi32(rows.offsets + first, used, offsets);
  }

  // The whole numbers of a set, zero but in `mask`; their sums by lanes.
  template <int kPlanes>
  __m512i write(const float* t, float factor, __mmask16 mask, uint8_t* q) const {
    __m512i sum = _mm512_setzero_si512();
    const int64_t size = kSize > 0 ? kSize : size_;
#pragma GCC unroll 4
    for (int64_t r = 0; r < size; r += 16) {
      __m512i level = _mm512_maskz_cvtps_epi32(
          mask, _mm512_mul_ps(_mm512_loadu_ps(t + r), _mm512_set1_ps(factor)));
      if constexpr (kSign == Sign::kUnsigned) {
        level = _mm512_max_epi32(level, _mm512_setzero_si512());
      }
      sum = _mm512_add_epi32(sum, level);
      const __m128i low = _mm512_cvtepi32_epi8(level);
      if constexpr (kPlanes == 1) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + r), low);
      } else {
        if constexpr (kSign == Sign::kSigned) {
          level = _mm512_add_epi32(level, _mm512_set1_epi32(128));
        }
        const __m128i upper = _mm512_cvtepi32_epi8(_mm512_srai_epi32(level, 8));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + r), upper);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + b_.rows + r), low);
      }
    }
    return sum;
  }

  const LevelBlock& b_;
  int64_t size_, n_groups_;
  alignas(64) float scaled_[kItems * (kAcross ? kMostLevelRows : 1)];
};

template <Sign kSign, bool kAcross>
void round_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                const LevelRows& rows) {
  const int64_t size = kAcross ? b.rows : b.group;
  if (size == 64) return Rounder<kSign, kAcross, 64>(b).run(a, ld_a, n, rows);
  Rounder<kSign, kAcross, 0>(b).run(a, ld_a, n, rows);
}

void round_level_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                      const LevelRows& rows) {
  const bool is_across = b.share == Share::kAcross;
  if (b.sign == Sign::kSigned) {
    (is_across ? round_rows<Sign::kSigned, true> : round_rows<Sign::kSigned, false>)(a, ld_a, n, b,
                                                                                     rows);
  } else {
    (is_across ? round_rows<Sign::kUnsigned, true> : round_rows<Sign::kUnsigned, false>)(a, ld_a, n,
                                                                                         b, rows);
  }
}

inline __m512i broadcast_quad(const uint8_t* q) {
  int32_t quad;
  std::memcpy(&quad, q, 4);
  return _mm512_set1_epi32(quad);
}

// As an instruction of its own: see panels_avx512.cc.
inline void add_products(__m512i unsigned_bytes, __m512i signed_bytes, __m512i& sums) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// kX rows from row i on, and kC vectors of columns from column j on, which share a set. Few sums
// take the even and the odd quads apart, so that enough products are under way. Sums stay in
// registers only where all of their loops are unrolled.
template <Sign kSign, int kX, int kC>
struct Tile {
  static constexpr int kChains = kX * kC >= 8 ? 1 : 8 / (kX * kC) >= 4 ? 4 : 2;

  // dot <- sums of products of `size` rows of the block from `levels` on.
  [[gnu::always_inline]] static inline void products(const uint8_t* levels, int64_t cols,
                                                     const uint8_t* q, int64_t ld_q, int64_t size,
                                                     int64_t plane, int planes,
                                                     __m512i (&dot)[kX][kC]) {
    __m512i more[kChains][kX][kC];  // but the first
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
        dot[x][v] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int c = 1; c < kChains; ++c) more[c][x][v] = _mm512_setzero_si512();
      }
    }
    for (int p = 0; p < planes; ++p, q += plane) {
      if (p > 0) {
#pragma GCC unroll 8
        for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 8
          for (int v = 0; v < kC; ++v) {
            dot[x][v] = _mm512_slli_epi32(dot[x][v], 8);
#pragma GCC unroll 8
            for (int c = 1; c < kChains; ++c) more[c][x][v] = _mm512_slli_epi32(more[c][x][v], 8);
          }
        }
      }
      for (int64_t r = 0; r < size; r += 4 * kChains) {
        add_quad(levels + r * cols, q + r, ld_q, dot);
#pragma GCC unroll 8
        for (int c = 1; c < kChains; ++c) {
          add_quad(levels + (r + 4 * c) * cols, q + r + 4 * c, ld_q, more[c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
#pragma GCC unroll 8
        for (int c = 1; c < kChains; ++c) dot[x][v] = _mm512_add_epi32(dot[x][v], more[c][x][v]);
      }
    }
  }

  // Four rows of the block.
  [[gnu::always_inline]] static inline void add_quad(const uint8_t* levels, const uint8_t* q,
                                                     int64_t ld_q, __m512i (&dot)[kX][kC]) {
    __m512i level[kC];
#pragma GCC unroll 8
    for (int v = 0; v < kC; ++v) level[v] = _mm512_loadu_si512(levels + 64 * v);
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
      const __m512i quad = broadcast_quad(q + x * ld_q);
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
        if constexpr (kSign == Sign::kSigned) {
          add_products(level[v], quad, dot[x][v]);
        } else {
          add_products(quad, level[v], dot[x][v]);
        }
      }
    }
  }

  static void across(const LevelBlock& b, const LevelRows& rows, int64_t j, float* y,
                     int64_t ld_y) {
    const int64_t n_groups = b.n_groups(), g = j / b.group, set = b.planes * b.rows;
    __m512i dot[kX][kC];
    products(b.levels + 4 * j, b.cols, rows.q + g * set, n_groups * set, b.rows, b.rows, b.planes,
             dot);
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
      const int64_t at = x * n_groups + g;
      const __m512i offset = _mm512_set1_epi32(rows.offsets[at]);
      const __m512 step = _mm512_set1_ps(rows.steps[at]), sum = _mm512_set1_ps(rows.sums[at]);
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
        float* to = y + x * ld_y + j + 16 * v;
        __m512 old = _mm512_loadu_ps(to);
        if (b.centres != nullptr) old = _mm512_add_ps(old, sum);
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[x][v], offset));
        _mm512_storeu_ps(to, _mm512_fmadd_ps(whole, step, old));
      }
    }
  }

  static void down(const LevelBlock& b, const LevelRows& rows, int64_t j, float* y, int64_t ld_y) {
    const int64_t n_groups = b.n_groups();
    for (int64_t g = 0; g < n_groups; ++g) {
      __m512i dot[kX][kC];
      products(b.levels + g * b.group * b.cols + 4 * j, b.cols, rows.q + g * b.group,
               b.planes * b.rows, b.group, b.rows, b.planes, dot);
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
        const int64_t place = g * b.cols + j + 16 * v;
        const __m512 scale = _mm512_loadu_ps(b.scales + place);
        __m512 centre = _mm512_setzero_ps();
        if (b.centres != nullptr) centre = _mm512_loadu_ps(b.centres + place);
#pragma GCC unroll 8
        for (int x = 0; x < kX; ++x) {
          const int64_t at = x * n_groups + g;
          float* to = y + x * ld_y + j + 16 * v;
          const __m512i offset = _mm512_set1_epi32(rows.offsets[at]);
          const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[x][v], offset));
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(rows.steps[at]));
          __m512 sum = _mm512_fmadd_ps(whole, both, _mm512_loadu_ps(to));
          if (b.centres != nullptr) {
            sum = _mm512_fmadd_ps(centre, _mm512_set1_ps(rows.sums[at]), sum);
          }
          _mm512_storeu_ps(to, sum);
        }
      }
    }
  }
};

// All columns for kX rows, in vectors that share a set.
template <Sign kSign, int kX>
void dot_rows(const LevelBlock& b, const LevelRows& rows, float* y, int64_t ld_y) {
  const bool is_down = b.share == Share::kDown;
  const int64_t group = is_down ? b.cols : b.group;
  for (int64_t j = 0; j < b.cols;) {
    const int64_t left = (j / group + 1) * group - j;
    // Sixteen sums at most, or two vectors.
    if (left >= 64 && kX <= 4) {
      (is_down ? Tile<kSign, std::min(kX, 4), 4>::down : Tile<kSign, std::min(kX, 4), 4>::across)(
          b, rows, j, y, ld_y);
      j += 64;
    } else if (left >= 32) {
      (is_down ? Tile<kSign, kX, 2>::down : Tile<kSign, kX, 2>::across)(b, rows, j, y, ld_y);
      j += 32;
    } else {
      (is_down ? Tile<kSign, kX, 1>::down : Tile<kSign, kX, 1>::across)(b, rows, j, y, ld_y);
      j += 16;
    }
  }
}

template <Sign kSign>
void dot_all(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  const auto take = [&](auto count, int64_t i) {
    dot_rows<kSign, decltype(count)::value>(b, rows.from(i, b), y + i * ld_y, ld_y);
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) take(std::integral_constant<int, 8>(), i);
  if (i + 4 <= n) {
    take(std::integral_constant<int, 4>(), i);
    i += 4;
  }
  if (i + 2 <= n) {
    take(std::integral_constant<int, 2>(), i);
    i += 2;
  }
  if (i < n) take(std::integral_constant<int, 1>(), i);
}

void level_dot(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  (b.sign == Sign::kSigned ? dot_all<Sign::kSigned> : dot_all<Sign::kUnsigned>)(b, rows, n, y,
                                                                                ld_y);
}

// Four rows of sixteen columns: a dword of levels is a column.
void level_floats(const LevelBlock& b, float* x) {
  const __m512i zero = _mm512_set1_epi32(b.zero);
  const bool has_centres = b.centres != nullptr;
  for (int64_t r = 0; r < b.rows; ++r) {
    const __m128i down = _mm_cvtsi32_si128(static_cast<int>(8 * (3 - r % 4)));
    for (int64_t j = 0; j < b.cols; j += 16) {
      const __m512i all = _mm512_loadu_si512(b.levels + level_place(b.cols, r / 4 * 4, j));
      const __m512i top = _mm512_sll_epi32(all, down);  // the row's byte above the others
      const __m512i level =
          b.sign == Sign::kSigned ? _mm512_srli_epi32(top, 24) : _mm512_srai_epi32(top, 24);
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(level, zero));
      __m512 scale, centre = _mm512_setzero_ps();
      if (b.share == Share::kDown) {
        const int64_t at = r / b.group * b.cols + j;
        scale = _mm512_loadu_ps(b.scales + at);
        if (has_centres) centre = _mm512_loadu_ps(b.centres + at);
      } else {
        const int64_t at = j / b.group * b.rows + r;
        scale = _mm512_set1_ps(b.scales[at]);
        if (has_centres) centre = _mm512_set1_ps(b.centres[at]);
      }
      const __m512 y =
          has_centres ? _mm512_fmadd_ps(whole, scale, centre) : _mm512_mul_ps(scale, whole);
      _mm512_storeu_ps(x + r * b.cols + j, y);
    }
  }
}

}  // namespace

void fill_level_block_avx512(KernelTable& table) {
  table.round_level_rows = round_level_rows;
  table.level_dot = level_dot;
  table.level_floats = level_floats;
}

}  // namespace quern
