// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/level_block.h"
#include "kernels/panels_round.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

float sum_lanes(float (&lanes)[16]) {
  for (int h = 8; h > 0; h /= 2) {
    for (int l = 0; l < h; ++l) lanes[l] += lanes[l + h];
  }
  return lanes[0];
}

int level_at(const LevelBlock& b, int64_t r, int64_t j) {
  const auto level = static_cast<uint8_t>(b.levels.at(level_place(b.cols, r, j)));
  return b.sign == Sign::kSigned ? level : static_cast<int8_t>(level);
}

// Rounds t [n] into planes `rows` apart; the sum of the whole numbers.
int32_t round_set(const LevelBlock& b, const float* t, int64_t n, uint8_t* q, float* step) {
  uint32_t largest = 0;
  for (int64_t r = 0; r < n; ++r) {
    largest = std::max(largest, std::bit_cast<uint32_t>(t[r]) & 0x7fffffffu);
  }
  const GroupRounding rounding(largest, b.most());
  *step = rounding.scale;
  int32_t sum = 0;
  for (int64_t r = 0; r < n; ++r) {
    int level =
        rounding.to_levels == 0 ? 0 : static_cast<int>(std::nearbyint(t[r] * rounding.to_levels));
    if (b.sign == Sign::kUnsigned) level = std::max(level, 0);
    sum += level;
    if (b.planes == 1) {
      q[r] = static_cast<uint8_t>(level);
    } else {
      const int upper = (level + (b.sign == Sign::kSigned ? 128 : 0)) >> 8;
      q[r] = static_cast<uint8_t>(upper);
      q[b.rows + r] = static_cast<uint8_t>(level - 256 * upper);
    }
  }
  return sum;
}

void round_down(const float* a, const LevelBlock& b, uint8_t* q, float* steps, int32_t* offsets,
                float* sums) {
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    const float* part = a + g * b.group;
    offsets[g] = -b.zero * round_set(b, part, b.group, q + g * b.group, steps + g);
    float lanes[16] = {};
    for (int64_t r = 0; r < b.group; ++r) lanes[r % 16] += part[r];
    sums[g] = sum_lanes(lanes);
  }
}

void round_across(const float* a, const LevelBlock& b, uint8_t* q, float* steps, int32_t* offsets,
                  float* sums) {
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    float t[kMostLevelRows], lanes[16] = {};
    for (int64_t r = 0; r < b.rows; ++r) {
      t[r] = a[r] == 0 ? 0.0f : a[r] * b.scales[g * b.rows + r];
      if (a[r] == 0 || b.centres == nullptr) continue;
      lanes[r % 16] = std::fma(a[r], b.centres[g * b.rows + r], lanes[r % 16]);
    }
    offsets[g] = -b.zero * round_set(b, t, b.rows, q + g * b.planes * b.rows, steps + g);
    sums[g] = sum_lanes(lanes);
  }
}

void round_level_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                      const LevelRows& rows) {
  const int64_t g = b.n_groups();
  for (int64_t i = 0; i < n; ++i) {
    (b.share == Share::kDown ? round_down : round_across)(
        a + i * ld_a, b, rows.q + i * b.n_sets() * b.planes * b.rows, rows.steps + i * g,
        rows.offsets + i * g, rows.sums + i * g);
  }
}

void round_exp_rows(const ScoreRows& scores, int64_t n, const LevelBlock& b,
                    const LevelRows& rows) {
  kernels(Isa::kRef).exp_rows(scores, n);
  round_level_rows(scores.x, scores.ld, n, b, rows);
}

// sum q (level - zero) over rows [first, first + n) of column j.
int32_t dot_column(const LevelBlock& b, const uint8_t* q, int64_t first, int64_t n, int64_t j) {
  int64_t sum = 0;
  for (int64_t r = first; r < first + n; ++r) {
    const auto part = [&](int64_t plane) {
      const uint8_t byte = q[plane * b.rows + r];
      return b.sign == Sign::kSigned ? static_cast<int8_t>(byte) : static_cast<int>(byte);
    };
    const int whole = b.planes == 1 ? part(0) : 256 * part(0) + part(1);
    sum += int64_t{whole} * (level_at(b, r, j) - b.zero);
  }
  return static_cast<int32_t>(sum);
}

void level_dot(const LevelBlock& b, const LevelRows& rows, int64_t n, float* y, int64_t ld_y) {
  const int64_t n_groups = b.n_groups();
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* q = rows.q + i * b.n_sets() * b.planes * b.rows;
    const float *steps = rows.steps + i * n_groups, *sums = rows.sums + i * n_groups;
    for (int64_t j = 0; j < b.cols; ++j) {
      float& sum = y[i * ld_y + j];
      if (b.share == Share::kAcross) {
        const int64_t g = j / b.group;
        const int32_t dot = dot_column(b, q + g * b.planes * b.rows, 0, b.rows, j);
        if (b.centres != nullptr) sum += sums[g];
        sum = std::fma(static_cast<float>(dot), steps[g], sum);
        continue;
      }
      for (int64_t g = 0; g < n_groups; ++g) {
        const int32_t dot = dot_column(b, q, g * b.group, b.group, j);
        const int64_t at = g * b.cols + j;
        sum = std::fma(static_cast<float>(dot), b.scales[at] * steps[g], sum);
        if (b.centres != nullptr) sum = std::fma(b.centres[at], sums[g], sum);
      }
    }
  }
}

}  // namespace

float level_float(const LevelBlock& b, int64_t row, int64_t col) {
  const int64_t at =
      b.share == Share::kDown ? row / b.group * b.cols + col : col / b.group * b.rows + row;
  const auto level = static_cast<float>(level_at(b, row, col) - b.zero);
  return b.centres == nullptr ? b.scales[at] * level : std::fma(level, b.scales[at], b.centres[at]);
}

namespace {

void level_floats(const LevelBlock& b, float* x) {
  for (int64_t r = 0; r < b.rows; ++r) {
    for (int64_t j = 0; j < b.cols; ++j) x[r * b.cols + j] = level_float(b, r, j);
  }
}

}  // namespace

void fill_level_block_ref(KernelTable& table) {
  table.round_level_rows = round_level_rows;
  table.round_exp_rows = round_exp_rows;
  table.level_dot = level_dot;
  table.level_floats = level_floats;
}

}  // namespace quern
