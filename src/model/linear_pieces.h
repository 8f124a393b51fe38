// SPDX-License-Identifier: Apache-2.0
// How products of rows with weights are cut into pieces for threads and caches: what linear() and
// linear_gated() are made of. For src/model alone.
#pragma once

#include <cstdint>
#include <vector>

#include "activations/act_quantizer.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/pair_product.h"
#include "kernels/panels.h"
#include "model/linear.h"

namespace quern {

// Where there are no more rows than this, weights pass through the first cache once; with more,
// they stay in the second while the rows go by.
inline constexpr int64_t kFewRows = 8;

// A piece of work has so many multiply-adds, if there are as many: below, waking a thread and
// beginning anew cost more than is won.
inline constexpr int64_t kMinWork = 256 << 10;

// Rows of activations in int8, for products with weights whose panels have groups of `group`
// columns. Two may be in use at once, what goes into an MLP and what lies inside of it; the calling
// thread keeps the memory of each for the next.
class RoundedRows {
 public:
  enum class Use : uint8_t { kInput, kMiddle };
  RoundedRows(int64_t n, int64_t cols, int64_t group, Use use = Use::kInput);

  // All rows, those of x behind its online operators, rounded as `rounding` says, or where that is
  // null to 8 bits in groups.
  void fill(MatrixView<const float> x, const OnlineChain& online, const ActRounding* rounding);

  // Where the levels of row i go from a group on.
  ActLevels levels(int64_t i, int64_t group = 0) const {
    return {group_, levels_ + i * stride_ + group * group_, scales_ + i * n_groups_ + group,
            offsets_ + i * n_groups_ + group};
  }
  // Rows [first, first + n).
  Int8Rows view(int64_t first, int64_t n) const {
    const ActLevels from = levels(first);
    return {from.levels, from.scales, from.offsets, n, n_groups_, group_, stride_};
  }
  Int8Rows view() const { return view(0, n_); }

 private:
  int64_t n_, n_groups_, group_, stride_;
  int8_t* levels_;
  float* scales_;
  int32_t* offsets_;
};

// How a product in int8 is cut.
struct Int8Cut {
  const Product* product;
  PanelTile tile;
  int64_t piece;       // rows that a thread takes
  int64_t rows, cols;  // decoded at a time

  Int8Cut(const Product& of, int64_t n);
};

// Rows [first, first + n_rows) of a product against x, to y[x.n, n_rows], without the bias.
void int8_piece(const Int8Cut& cut, const Int8Rows& x, int64_t first, int64_t n_rows,
                MatrixView<float> y);

// Terms of a sum of pairs of n columns, and of each row of pairs: zeros are the last.
inline int64_t padded_terms(int64_t n) { return round_up(n, kPairGroup); }

// Rows [row, row + n_rows) of a weight in pairs: dst[n_rows, n_in].
void unpack_rows(const LinearWeight& weight, int64_t row, int64_t n_rows, float* dst);

// Products of weights that meet x, behind its online operators, as bfloat16.
void linear_of_pairs(const std::vector<const Product*>& products, MatrixView<const float> x,
                     const OnlineChain& online);

// A stride for rows of n bytes so that neighbours lie in different sets of a cache: an odd number
// of lines.
inline int64_t spread(int64_t n) {
  constexpr int64_t kLine = 64;
  return (ceil_div(n, kLine) | 1) * kLine;
}

// y += biases [first, first + y.cols).
void add_bias(const LinearWeight& weight, int64_t first, MatrixView<float> y);

// Whether the inputs of both are rounded in the same way.
bool round_alike(const LinearWeight& a, const LinearWeight& b);

// Rows of a product that a thread takes at once.
struct Piece {
  const Product* product;
  const Int8Cut* how;  // null: in float
  int64_t first, n_rows;
};

void cut(const Product& product, const Int8Cut* how, int64_t piece, std::vector<Piece>& pieces);

template <class Body>
void for_pieces(const std::vector<Piece>& pieces, const Body& body) {
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(pieces[static_cast<size_t>(i)]);
  });
}

// The integer products of those pieces, with their biases.
void run_int8(const std::vector<Piece>& pieces, const Int8Rows& x);

}  // namespace quern
