// SPDX-License-Identifier: Apache-2.0
// Codes become bytes before, for all rows, and whole numbers 16 bits: a quad of rows and eight
// columns are two vectors, whose products with a quad of whole numbers are added in pairs and
// cannot saturate.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

constexpr int kRows = 4;  // that share what columns have become

const uint8_t* bytes_of(const LevelCodes& levels) {
  if (levels.bits == 8) return reinterpret_cast<const uint8_t*>(levels.codes);
  thread_local AlignedVector<uint8_t> bytes;
  uint8_t* to = grown(bytes, levels.n);
  unpack_level_codes_avx2(levels, to);
  return to;
}

template <bool kIsSigned>
inline __m256i widened(const uint8_t* bytes) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return kIsSigned ? _mm256_cvtepi8_epi16(narrow) : _mm256_cvtepu8_epi16(narrow);
}

// Numbers of the rows: signed where levels are not.
template <Sign kSign>
const int16_t* widened_rows(const uint8_t* q, int64_t n) {
  thread_local AlignedVector<int16_t> wide;
  int16_t* to = grown(wide, n);
  for (int64_t i = 0; i < n; i += 16) {
    const __m256i part = widened<kSign == Sign::kSigned>(q + i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), part);
  }
  return to;
}

// A block, and rows to meet it.
template <Sign kSign>
struct Product {
  const LevelBlock& b;
  const uint8_t* levels;
  const int16_t* q;  // [n, n_sets, planes, b.rows]
  const LevelRows& rows;
  float* y;
  int64_t ld_y;

  // Of four columns each, the two pairs of a quad apart. In registers only where all loops over
  // them are unrolled.
  template <int kX>
  using Dots = __m256i[kX][2];

  // dot += products of rows [first, first + n) of columns [j, j + 8) with those numbers.
  template <int kX>
  [[gnu::always_inline]] inline void add_plane(int64_t first, int64_t n, int64_t j,
                                               const int16_t* numbers, int64_t ld,
                                               Dots<kX>& dot) const {
    const uint8_t* quad = levels + (first / 4 * b.cols + j) * 4;
    for (int64_t r = 0; r < n; r += 4, quad += 4 * b.cols, numbers += 4) {
      const __m256i low = widened<kSign == Sign::kUnsigned>(quad);
      const __m256i high = widened<kSign == Sign::kUnsigned>(quad + 16);
#pragma GCC unroll 4
      for (int x = 0; x < kX; ++x) {
        int64_t four;
        std::memcpy(&four, numbers + x * ld, 8);
        const __m256i all = _mm256_set1_epi64x(four);
        dot[x][0] = _mm256_add_epi32(dot[x][0], _mm256_madd_epi16(low, all));
        dot[x][1] = _mm256_add_epi32(dot[x][1], _mm256_madd_epi16(high, all));
      }
    }
  }

  // Columns [j, j + 8) and group g for kX rows from row i on.
  template <int kX>
  void run(int64_t i, int64_t j, int64_t g) const {
    const bool is_down = b.share == Share::kDown;
    const int64_t n_groups = b.n_groups(), set = b.planes * b.rows, ld = b.n_sets() * set;
    const int64_t first = is_down ? g * b.group : 0, n = is_down ? b.group : b.rows;
    const int16_t* numbers = q + i * ld + (is_down ? first : g * set);
    Dots<kX> dot = {};
    add_plane<kX>(first, n, j, numbers, ld, dot);
    if (b.planes > 1) {
#pragma GCC unroll 4
      for (int x = 0; x < kX; ++x) {
        dot[x][0] = _mm256_slli_epi32(dot[x][0], 8);
        dot[x][1] = _mm256_slli_epi32(dot[x][1], 8);
      }
      add_plane<kX>(first, n, j, numbers + b.rows, ld, dot);
    }
#pragma GCC unroll 4
    for (int x = 0; x < kX; ++x) {
      const __m256i pairs = _mm256_hadd_epi32(dot[x][0], dot[x][1]);  // columns 0 1 4 5, 2 3 6 7
      const __m256i sums = _mm256_permute4x64_epi64(pairs, 0xd8);
      add_scaled((i + x) * n_groups + g, j, g, sums, y + (i + x) * ld_y + j);
    }
  }

  // Sums of eight columns, with what row and group are number `at` have beside them.
  void add_scaled(int64_t at, int64_t j, int64_t g, __m256i sums, float* to) const {
    const __m256i all = _mm256_add_epi32(sums, _mm256_set1_epi32(rows.offsets[at]));
    const __m256 whole = _mm256_cvtepi32_ps(all);
    const __m256 step = _mm256_set1_ps(rows.steps[at]), sum = _mm256_set1_ps(rows.sums[at]);
    __m256 total = _mm256_loadu_ps(to);
    if (b.share == Share::kAcross) {
      if (b.centres != nullptr) total = _mm256_add_ps(total, sum);
      total = _mm256_fmadd_ps(whole, step, total);
    } else {
      const int64_t place = g * b.cols + j;
      const __m256 scale = _mm256_loadu_ps(b.scales + place);
      total = _mm256_fmadd_ps(whole, _mm256_mul_ps(scale, step), total);
      if (b.centres != nullptr) {
        total = _mm256_fmadd_ps(_mm256_loadu_ps(b.centres + place), sum, total);
      }
    }
    _mm256_storeu_ps(to, total);
  }

  template <int kX>
  void run_rows(int64_t i) const {
    for (int64_t j = 0; j < b.cols; j += 8) {
      if (b.share == Share::kAcross) {
        run<kX>(i, j, j / b.group);
        continue;
      }
      for (int64_t g = 0; g < b.n_groups(); ++g) run<kX>(i, j, g);
    }
  }
};

template <Sign kSign>
void dot_all(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  const int16_t* q = widened_rows<kSign>(rows.q, n * b.n_sets() * b.planes * b.rows);
  const Product<kSign> product{b, bytes_of(b.levels), q, rows, y, ld_y};
  int64_t i = 0;
  for (; i + kRows <= n; i += kRows) product.template run_rows<kRows>(i);
  for (; i < n; ++i) product.template run_rows<1>(i);
}

void level_dot(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  (b.sign == Sign::kSigned ? dot_all<Sign::kSigned> : dot_all<Sign::kUnsigned>)(b, rows, n, y,
                                                                                ld_y);
}

// Four rows of eight columns: a dword of levels is a column.
void level_floats(const LevelBlock& b, float* x) {
  const uint8_t* levels = bytes_of(b.levels);
  const bool has_centres = b.centres != nullptr, is_down = b.share == Share::kDown;
  const __m256i zero = _mm256_set1_epi32(b.zero);
  for (int64_t r = 0; r < b.rows; ++r) {
    const __m128i down = _mm_cvtsi32_si128(static_cast<int>(8 * (3 - r % 4)));
    for (int64_t j = 0; j < b.cols; j += 8) {
      const uint8_t* from = levels + (r / 4 * b.cols + j) * 4;
      const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i top = _mm256_sll_epi32(all, down);  // the row's byte above the others
      const __m256i level =
          b.sign == Sign::kSigned ? _mm256_srli_epi32(top, 24) : _mm256_srai_epi32(top, 24);
      const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(level, zero));
      const int64_t at = is_down ? r / b.group * b.cols + j : j / b.group * b.rows + r;
      const auto load = [&](const float* p) {
        return is_down ? _mm256_loadu_ps(p + at) : _mm256_set1_ps(p[at]);
      };
      const __m256 scale = load(b.scales);
      const __m256 y = has_centres ? _mm256_fmadd_ps(whole, scale, load(b.centres))
                                   : _mm256_mul_ps(scale, whole);
      _mm256_storeu_ps(x + r * b.cols + j, y);
    }
  }
}

}  // namespace

void fill_level_block_avx2(KernelTable& table) {
  table.level_dot = level_dot;
  table.level_floats = level_floats;
}

}  // namespace quern
