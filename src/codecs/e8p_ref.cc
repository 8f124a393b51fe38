// SPDX-License-Identifier: Apache-2.0
// The codebooks of e8p as published, and the scalar reference.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "base/check.h"
#include "codecs/e8p_search.h"

namespace quern {
namespace {

struct Lanes {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  static Floats min(Floats a, Floats b) { return a < b ? a : b; }
  static void offer(Floats candidate, Ints candidate_row, Floats& score, Ints& row) {
    const Ints is_better = candidate > score;
    score = is_better ? candidate : score;
    row = is_better ? candidate_row : row;
  }
};

// The rows of norm 12 that fill the table up to 256, in doubled entries.
constexpr std::string_view kNorm12[29] = {
    "31113333", "13113333", "11313333", "11133333", "33313311", "33313131", "33311331", "33313113",
    "33311313", "33311133", "33133311", "33133131", "33131331", "33133113", "33131313", "33131133",
    "31333311", "31333131", "31331331", "31333113", "31331313", "13331133", "13333311", "13333131",
    "13331331", "13333113", "13331313", "11333133", "33113331"};

// The rows in lexicographic order of norm 10 at most, entries 1/2, 3/2, 5/2: 227 of them.
void fill_rows(E8pTables& t) {
  int n_rows = 0;
  const auto add = [&](const int doubled[8]) {
    QUERN_CHECK(n_rows < 256);
    int sum = 0, norm = 0;
    t.packed[n_rows] = 0;
    for (int i = 0; i < 8; ++i) {
      t.packed[n_rows] = static_cast<uint16_t>(t.packed[n_rows] | doubled[i] / 2 << 2 * i);
      sum += doubled[i];
      norm += doubled[i] * doubled[i];
      t.points[n_rows][i] = static_cast<int8_t>(2 * doubled[i]);
      t.rows[i][n_rows] = 0.5f * static_cast<float>(doubled[i]);
    }
    const bool is_odd = sum / 2 % 2 != 0;
    t.is_odd[n_rows] = is_odd ? 1 : 0;
    t.norms[n_rows] = 0.25f * static_cast<float>(norm);
    t.flips[0][n_rows] = is_odd ? 4.0f : 0.0f;
    t.flips[1][n_rows] = is_odd ? 0.0f : 4.0f;
    if (is_odd) t.points[n_rows][7] = static_cast<int8_t>(-t.points[n_rows][7]);
    ++n_rows;
  };
  for (int index = 0; index < 6561; ++index) {  // 3^8
    int doubled[8], norm = 0;
    for (int i = 7, rest = index; i >= 0; --i, rest /= 3) {
      doubled[i] = 1 + 2 * (rest % 3);
      norm += doubled[i] * doubled[i];
    }
    if (norm <= 40) add(doubled);
  }
  QUERN_CHECK(n_rows == 227);
  for (const std::string_view text : kNorm12) {
    int doubled[8];
    for (size_t i = 0; i < 8; ++i) doubled[i] = text[i] - '0';
    add(doubled);
  }
}

// E8 of norm 2 at most, then 15 points of norm 4: 0; +-e_i +-e_j for i < j; +-1/2 with an even
// number of minus signs; 2 e_0, -2 e_0, 2 e_1, ..., 2 e_7.
void fill_e8(E8pTables& t) {
  int n_points = 0;
  const auto add = [&](const int quarters[8]) {
    QUERN_CHECK(n_points < 256);
    int norm = 0;
    for (int i = 0; i < 8; ++i) {
      norm += quarters[i] * quarters[i];
      t.e8[n_points][i] = static_cast<int8_t>(quarters[i]);
      t.e8_rows[i][n_points] = 0.25f * static_cast<float>(quarters[i]);
    }
    t.e8_norms[n_points++] = static_cast<float>(norm) / 16.0f;
  };
  const int zero[8] = {};
  add(zero);
  for (int i = 0; i < 8; ++i) {
    for (int j = i + 1; j < 8; ++j) {
      for (int signs = 0; signs < 4; ++signs) {
        int point[8] = {};
        point[i] = (signs & 1) != 0 ? -4 : 4;
        point[j] = (signs & 2) != 0 ? -4 : 4;
        add(point);
      }
    }
  }
  for (unsigned signs = 0; signs < 256; ++signs) {
    if (std::popcount(signs) % 2 != 0) continue;
    int point[8];
    for (int i = 0; i < 8; ++i) point[i] = (signs >> i & 1u) != 0 ? -2 : 2;
    add(point);
  }
  for (int i = 0; i < 15; ++i) {
    int point[8] = {};
    point[i / 2] = i % 2 != 0 ? -8 : 8;
    add(point);
  }
  QUERN_CHECK(n_points == 256);
}

unsigned code_at(const uint8_t* codes, int64_t i) {
  uint16_t code;
  std::memcpy(&code, codes + 2 * i, 2);
  return code;
}

void decode_row(const E8pTables& t, const E8pRow& row, float* dst) {
  const float quarter = 0.25f * row.scale;
  for (int64_t j = 0; j < row.n; j += 8) {
    int8_t point[8], residual[8] = {};
    e8p_point(t, code_at(row.codes, j / 8), point);
    if (row.kind == E8pResidual::kE8) std::memcpy(residual, t.e8[row.residual[j / 8]], 8);
    if (row.kind == E8pResidual::kE8p) e8p_point(t, code_at(row.residual, j / 8), residual);
    for (int64_t i = 0; i < 8 && j + i < row.n; ++i) {
      auto value = static_cast<float>(point[i]);
      if (row.kind != E8pResidual::kNone) {
        value += row.inverse_ratio * static_cast<float>(residual[i]);
      }
      dst[j + i] = quarter * value;
    }
  }
}

}  // namespace

const E8pTables& e8p_tables() {
  static const E8pTables* const tables = [] {
    static E8pTables filled;
    fill_rows(filled);
    fill_e8(filled);
    return &filled;
  }();
  return *tables;
}

void e8p_point(const E8pTables& tables, unsigned code, int8_t point[8]) {
  const unsigned row = code >> 8, signs = code & 255u;
  const unsigned is_minus = static_cast<unsigned>(std::popcount(signs)) & 1u;
  const unsigned negated = signs ^ is_minus;
  const int shift = is_minus != 0 ? -1 : 1;
  for (int i = 0; i < 8; ++i) {
    const int sign = (negated >> i & 1u) != 0 ? -1 : 1;
    point[i] = static_cast<int8_t>(sign * tables.points[row][i] + shift);
  }
}

const E8pKernels e8p_kernels_ref = {E8pSearch<Lanes>::nearest, E8pSearch<Lanes>::nearest_e8,
                                    decode_row};

const E8pKernels& e8p_kernels(Isa isa) {
  if (isa == Isa::kAvx512) return e8p_kernels_avx512;
  return isa == Isa::kAvx2 ? e8p_kernels_avx2 : e8p_kernels_ref;
}

}  // namespace quern
