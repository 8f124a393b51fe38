// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_sinks.h"

#include <algorithm>

#include "base/float_types.h"

namespace quern {
namespace {

float correction_at(const BlockCorrection* c, int64_t row, int64_t col) {
  if (c == nullptr) return 0;
  float sum = 0;
  for (int64_t e = 0; e < c->n_entries; ++e) {
    if (c->entry_rows[e] == row && c->entry_cols[e] == col) sum += c->deltas[e];
  }
  for (int64_t k = 0; k < c->rank; ++k)
    sum += c->left[k * c->rows + row] * c->right[k * c->cols + col];
  return sum;
}

}  // namespace

void KvSinks::keep(KvSide side, int64_t head, const float* x) {
  for (int64_t p = 0; p < n_; ++p) {
    for (int64_t c = 0; c < d_; ++c) half_of(side, head, p)[c] = float_to_f16(x[place(side, p, c)]);
  }
}

void KvSinks::stand_in(KvSide side, float* x) const {
  for (int64_t p = 0; p < n_; ++p) {
    for (int64_t c = 0; c < d_; ++c) {
      x[place(side, p, c)] = side == KvSide::kKeys ? x[place(side, n_, c)] : 0;
    }
  }
}

float KvSinks::value(KvSide side, int64_t head, int64_t position, int64_t c) const {
  return f16_to_float(const_cast<KvSinks*>(this)->half_of(side, head, position)[c]);
}

KvOperand KvSinks::with(KvSide side, int64_t head, const KvOperand& read,
                        const KvScratch& scratch) const {
  const bool is_keys = side == KvSide::kKeys;
  if (read.levels == nullptr || read.factor != nullptr) {
    const float* x = floats_of(read, kKeyBlock * d_, scratch.floats);
    if (x != scratch.floats) std::copy_n(x, kKeyBlock * d_, scratch.floats);
    for (int64_t p = 0; p < n_; ++p) {
      for (int64_t c = 0; c < d_; ++c) scratch.floats[place(side, p, c)] = value(side, head, p, c);
    }
    return {.floats = scratch.floats};
  }
  // What they differ by is a product of rank n, behind the pairs that the codec has.
  const LevelBlock& levels = *read.levels;
  BlockCorrection sum;
  if (read.added != nullptr) sum = *read.added;
  const int64_t rank = sum.rank;
  sum.rows = levels.rows;
  sum.cols = levels.cols;
  sum.rank = rank + n_;
  float* left = scratch.added + kKeyBlock * d_;
  float* right = left + sum.rank * sum.rows;
  std::fill_n(left, sum.rank * (sum.rows + sum.cols), 0.0f);
  std::copy_n(sum.left, rank * sum.rows, left);
  std::copy_n(sum.right, rank * sum.cols, right);
  for (int64_t p = 0; p < n_; ++p) {
    float* lefts = left + (rank + p) * sum.rows;
    float* rights = right + (rank + p) * sum.cols;
    (is_keys ? rights : lefts)[p] = 1;
    for (int64_t c = 0; c < d_; ++c) {
      const int64_t row = is_keys ? c : p, col = is_keys ? p : c;
      (is_keys ? lefts : rights)[c] = value(side, head, p, c) - level_float(levels, row, col) -
                                      correction_at(read.added, row, col);
    }
  }
  sum.left = left;
  sum.right = right;
  *scratch.correction = sum;
  return {.levels = read.levels, .added = scratch.correction};
}

}  // namespace quern
