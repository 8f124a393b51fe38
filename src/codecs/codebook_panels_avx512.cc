// SPDX-License-Identifier: Apache-2.0
// 64 columns of a row: a byte shuffle brings each 64-bit lane the bytes of its eight columns, a
// multishift their points to the bits of an index above the coordinate, and the row's table is
// looked up. Sixteen rows are then turned.
#include <algorithm>
#include <array>

#include "codecs/byte_table_avx512.h"
#include "codecs/codebook.h"
#include "codecs/panel_bytes_avx512.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// How 64 columns of points of `width` bits become indices.
struct Plan {
  PanelBytes places, shifts, coordinate;
};

Plan make_plan(int log_dim, int width) {
  const int dim = 1 << log_dim;
  const auto bit_of = [=](int i) { return i / 8 * 8 / dim * width; };
  return {panel_bytes([=](int i) { return bit_of(i) / 8 + i % 8; }),
          panel_bytes([=](int i) { return bit_of(i) % 8 + i % 8 / dim * width - log_dim; }),
          panel_bytes([=](int i) { return i % dim; })};
}

const Plan& plan_of(int log_dim, int width) {
  using Plans = std::array<std::array<Plan, 9>, 3>;
  static const Plans plans = [] {
    Plans all;
    for (int d = 0; d < 3; ++d) {
      for (int w = 1; w <= 8; ++w) {
        all[static_cast<size_t>(d)][static_cast<size_t>(w)] = make_plan(d, w);
      }
    }
    return all;
  }();
  return plans[static_cast<size_t>(log_dim)][static_cast<size_t>(width)];
}

// In a table of 2^kBits bytes; of up to 64, kBits 6, those of `is_there` are.
template <int kBits>
__m512i look_up(const int8_t* table, __mmask64 is_there, __m512i index) {
  if constexpr (kBits > 6) return ByteTable<kBits>(table)(index);
  return _mm512_permutexvar_epi8(index, _mm512_maskz_loadu_epi8(is_there, table));
}

template <int kBits>
void write_panel(const CodebookPanel& rows, uint8_t* levels) {
  const int64_t table_bytes = int64_t{rows.dim} << rows.width;
  const __mmask64 is_there = ~uint64_t{0} >> (64 - std::min<int64_t>(64, table_bytes));
  const Plan& plan = plan_of(rows.dim / 2, rows.width);  // of 1, 2 and 4
  const __m512i places = plan.places.load(), shifts = plan.shifts.load();
  const __m512i coordinate = plan.coordinate.load();
  const __m512i point_bits = _mm512_set1_epi8(static_cast<char>(table_bytes - rows.dim));
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(kPanelZero));
  const int64_t step = 8 * rows.width / rows.dim;  // bytes of 64 columns
  for (int64_t j = 0, byte = 0; j < rows.n_cols; j += 64, byte += step) {
    const int64_t n_bytes = std::min<int64_t>(64, rows.codes_bytes - byte);
    const __mmask64 present = ~uint64_t{0} >> (64 - n_bytes);
    __m512i lines[16];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t i = std::min(r, rows.n_rows - 1);
      const uint8_t* from = rows.codes + i * rows.stride + byte;
      prefetch_next_panel(from, rows.stride);
      const __m512i bytes = _mm512_maskz_loadu_epi8(present, from);
      const __m512i points =
          _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(places, bytes));
      const __m512i index = _mm512_ternarylogic_epi32(point_bits, points, coordinate, 0xca);
      lines[r] = _mm512_xor_si512(look_up<kBits>(rows.tables[i], is_there, index), zero);
    }
    transpose_16x16(lines);
    const int64_t n = std::min<int64_t>(16, (rows.n_cols - j + 3) / 4);
    for (int64_t q = 0; q < n; ++q, levels += 64) _mm512_storeu_si512(levels, lines[q]);
  }
}

}  // namespace

void codebook_panel_avx512(const CodebookPanel& rows, uint8_t* levels) {
  const int64_t table_bytes = int64_t{rows.dim} << rows.width;
  if (table_bytes <= 64) return write_panel<6>(rows, levels);
  if (table_bytes == 128) return write_panel<7>(rows, levels);
  write_panel<8>(rows, levels);
}

}  // namespace quern
