// SPDX-License-Identifier: Apache-2.0
// A lane is a column of the block: four of its rows meet four whole numbers of a row of a by VNNI.
// A line of codes is a vector of levels, for sixteen columns, and becomes one in a register, for
// all rows of a tile.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/level_lines_avx512.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

inline __m512i broadcast_quad(const uint8_t* q) {
  int32_t quad;
  std::memcpy(&quad, q, 4);
  return _mm512_set1_epi32(quad);
}

// As an instruction of its own: see panels_avx512.cc.
inline void add_products(__m512i unsigned_bytes, __m512i signed_bytes, __m512i& sums) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// What is read after a block, fetched a little at a time: all at once would wait.
struct Ahead {
  const char* at;
  int64_t step;  // between quads, of at most two lines

  [[gnu::always_inline]] inline void fetch() {
    __builtin_prefetch(at);
    __builtin_prefetch(at + 64);
    at += step;
  }
};

// kX rows from row i on, and kC vectors of columns from column j on, which share a set. Few sums
// take the even and the odd quads apart, so that enough products are under way. Sums stay in
// registers only where all of their loops are unrolled.
template <Sign kSign, int kBits, int kX, int kC>
struct Tile {
  static constexpr int kChains = kX * kC >= 8 ? 1 : 8 / (kX * kC) >= 4 ? 4 : 2;
  using Sums = __m512i[kX][kC];

  // Whole numbers of a part of the rows of the block, from row `first` on.
  struct Part {
    const uint8_t* q;
    int64_t ld_q, first, size;
  };

  // dot += sums of products of the rows of a part with one plane of their whole numbers.
  [[gnu::always_inline]] static inline void add_plane(const LevelLines<kBits>& lines, int64_t line,
                                                      int64_t n_lines, const Part& part,
                                                      Ahead& ahead, Sums& dot) {
    Sums more[kChains];  // but the first
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) clear(more[c]);
    const uint8_t* q = part.q;
    for (int64_t r = 0; r < part.size; r += 4 * kChains, q += 4 * kChains) {
      add_quad(lines, line, q, part.ld_q, ahead, dot);
      line += n_lines;
#pragma GCC unroll 8
      for (int c = 1; c < kChains; ++c, line += n_lines) {
        add_quad(lines, line, q + 4 * c, part.ld_q, ahead, more[c]);
      }
    }
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) {
      for_sums([&](int x, int v) { dot[x][v] = _mm512_add_epi32(dot[x][v], more[c][x][v]); });
    }
  }

  template <class F>
  [[gnu::always_inline]] static inline void for_sums(const F& f) {
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) f(x, v);
    }
  }
  [[gnu::always_inline]] static inline void clear(Sums& sums) {
    for_sums([&](int x, int v) { sums[x][v] = _mm512_setzero_si512(); });
  }

  // Four rows of the block.
  [[gnu::always_inline]] static inline void add_quad(const LevelLines<kBits>& lines, int64_t line,
                                                     const uint8_t* q, int64_t ld_q, Ahead& ahead,
                                                     Sums& dot) {
    __m512i level[kC];
#pragma GCC unroll 8
    for (int v = 0; v < kC; ++v) level[v] = lines[line + v];
    ahead.fetch();
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

  // What stores to y could change as far as the compiler knows is read before: a division for each
  // row would take a fifth of the time.
  [[gnu::always_inline]] static inline void add_across(const LevelBlock& b, const LevelRows& rows,
                                                       int64_t g, const Sums& dot, float* y,
                                                       int64_t ld_y) {
    const int64_t n_groups = b.n_groups();
    const LevelRows r = rows;
    const bool has_centres = b.centres != nullptr;
#pragma GCC unroll 8
    for (int x = 0; x < kX; ++x) {
      const int64_t at = x * n_groups + g;
      const __m512i offset = _mm512_set1_epi32(r.offsets[at]);
      const __m512 step = _mm512_set1_ps(r.steps[at]), sum = _mm512_set1_ps(r.sums[at]);
#pragma GCC unroll 8
      for (int v = 0; v < kC; ++v) {
        float* to = y + x * ld_y + 16 * v;
        __m512 old = _mm512_loadu_ps(to);
        if (has_centres) old = _mm512_add_ps(old, sum);
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[x][v], offset));
        _mm512_storeu_ps(to, _mm512_fmadd_ps(whole, step, old));
      }
    }
  }

  [[gnu::always_inline]] static inline void add_down(const LevelBlock& b, const LevelRows& rows,
                                                     int64_t j, int64_t g, const Sums& dot,
                                                     float* y, int64_t ld_y) {
    const int64_t n_groups = b.n_groups();
    const LevelRows r = rows;
    const bool has_centres = b.centres != nullptr;
#pragma GCC unroll 8
    for (int v = 0; v < kC; ++v) {
      const int64_t place = g * b.cols + j + 16 * v;
      const __m512 scale = _mm512_loadu_ps(b.scales + place);
      __m512 centre = _mm512_setzero_ps();
      if (has_centres) centre = _mm512_loadu_ps(b.centres + place);
#pragma GCC unroll 8
      for (int x = 0; x < kX; ++x) {
        const int64_t at = x * n_groups + g;
        float* to = y + x * ld_y + 16 * v;
        const __m512i offset = _mm512_set1_epi32(r.offsets[at]);
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[x][v], offset));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(r.steps[at]));
        __m512 sum = _mm512_fmadd_ps(whole, both, _mm512_loadu_ps(to));
        if (has_centres) sum = _mm512_fmadd_ps(centre, _mm512_set1_ps(r.sums[at]), sum);
        _mm512_storeu_ps(to, sum);
      }
    }
  }

  // The columns from j on and the rows of group g, or all. A call of its own leaves the registers
  // to the loop.
  [[gnu::noinline]] static void run(const LevelBlock& b, const LevelLines<kBits>& all_lines,
                                    const LevelRows& rows, int64_t j, int64_t g, Ahead& fetched,
                                    float* y, int64_t ld_y) {
    const bool is_down = b.share == Share::kDown;
    const int64_t set = b.planes * b.rows, n_lines = b.cols / 16;
    Part part = is_down ? Part{rows.q + g * b.group, set, g * b.group, b.group}
                        : Part{rows.q + g * set, b.n_groups() * set, 0, b.rows};
    const int64_t line = part.first / 4 * n_lines + j / 16;
    const LevelLines<kBits> lines = all_lines;
    Ahead ahead = fetched;
    Sums dot;
    clear(dot);
    add_plane(lines, line, n_lines, part, ahead, dot);
    if (b.planes > 1) {
      for_sums([&](int x, int v) { dot[x][v] = _mm512_slli_epi32(dot[x][v], 8); });
      part.q += b.rows;
      add_plane(lines, line, n_lines, part, ahead, dot);
    }
    fetched = ahead;
    if (is_down) {
      add_down(b, rows, j, g, dot, y, ld_y);
    } else {
      add_across(b, rows, g, dot, y, ld_y);
    }
  }
};

// All columns for kX rows, in vectors that share a set.
template <Sign kSign, int kBits, int kX>
void dot_rows(const LevelBlock& b, const LevelLines<kBits>& lines, const LevelRows& rows,
              Ahead& ahead, float* y, int64_t ld_y) {
  const bool is_down = b.share == Share::kDown;
  for (int64_t j = 0; j < b.cols;) {
    const int64_t left = is_down ? b.cols - j : b.group - j % b.group;
    const int64_t first = is_down ? 0 : j / b.group, end = is_down ? b.n_groups() : first + 1;
    for (int64_t g = first; g < end; ++g) {
      (left >= 32 ? Tile<kSign, kBits, kX, 2>::run : Tile<kSign, kBits, kX, 1>::run)(
          b, lines, rows, j, g, ahead, y + j, ld_y);
    }
    j += left >= 32 ? 32 : 16;
  }
}

template <Sign kSign, int kBits>
void dot_all(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  const LevelLines<kBits> lines(b.levels);
  // The first rows fetch, the others stay where they are.
  const int64_t n_quads = b.cols / 32 * (b.rows / 4) * b.planes;
  Ahead ahead{reinterpret_cast<const char*>(b.levels.codes), 0};
  if (b.next != nullptr && n_quads > 0) {
    ahead = {reinterpret_cast<const char*>(b.next), b.n_next / n_quads};
  }
  const auto take = [&](auto count, int64_t i) {
    dot_rows<kSign, kBits, decltype(count)::value>(b, lines, rows.from(i, b), ahead, y + i * ld_y,
                                                   ld_y);
    ahead.step = 0;
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
  with_level_bits(b.levels.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    const bool is_signed = b.sign == Sign::kSigned;
    (is_signed ? dot_all<Sign::kSigned, kBits> : dot_all<Sign::kUnsigned, kBits>)(b, rows, n, y,
                                                                                  ld_y);
  });
}

// Four rows of sixteen columns: a dword of levels is a column.
template <int kBits>
void floats_of_levels(const LevelBlock& b, float* x) {
  const LevelLines<kBits> lines(b.levels);
  const __m512i zero = _mm512_set1_epi32(b.zero);
  const bool has_centres = b.centres != nullptr;
  for (int64_t line = 0; line < b.rows / 4 * (b.cols / 16); ++line) {
    const int64_t quad = line / (b.cols / 16), j = line % (b.cols / 16) * 16;
    const __m512i all = lines[line];
    for (int64_t r = 4 * quad; r < 4 * quad + 4; ++r) {
      const __m128i down = _mm_cvtsi32_si128(static_cast<int>(8 * (3 - r % 4)));
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

void level_floats(const LevelBlock& b, float* x) {
  with_level_bits(b.levels.bits, [&](auto bits) { floats_of_levels<decltype(bits)::value>(b, x); });
}

}  // namespace

void fill_level_block_avx512(KernelTable& table) {
  table.level_dot = level_dot;
  table.level_floats = level_floats;
}

}  // namespace quern
