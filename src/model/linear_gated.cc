// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "kernels/kernels.h"
#include "model/linear_pieces.h"
#include "model/row_passes.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// What lies between the products of an MLP is rounded in blocks: floats of one, which stay in the
// second cache, its rows, and its least columns. Fewer rows than that are not worth the blocks.
constexpr int64_t kMiddle = 128 << 10;
constexpr int64_t kMiddleRows = 32;
constexpr int64_t kMiddleCols = 256, kMostMiddleCols = 4096;
constexpr int64_t kLineFloats = 16;

// Both products of a gate in integers, over the same rows in the same pieces.
struct GatedCut {
  Int8Cut gate, up;
  Activation activation;

  // Rows [first, first + n_rows) to y[x.n, n_rows]; those of `up` meet those of `gate` while both
  // are in a cache.
  void piece(const Int8Rows& x, int64_t first, int64_t n_rows, MatrixView<float> y) const {
    thread_local AlignedVector<float> part;
    const MatrixView<float> u{grown(part, x.n * n_rows), x.n, n_rows};
    for (const Int8Cut* one : {&gate, &up}) {
      const MatrixView<float> to = one == &gate ? y : u;
      int8_piece(*one, x, first, n_rows, to);
      add_bias(*one->product->weight, first, to);
    }
    for (int64_t i = 0; i < x.n; ++i) {
      kernels().activate_gated(activation, u.row(i), u.cols, y.row(i));
    }
  }
};

// Whether the pieces of both fit.
bool are_alike(const Int8Cut& gate, const Int8Cut& up) {
  return gate.tile.group == up.tile.group && gate.piece == up.piece;
}

bool is_integer_gate(const LinearWeight& gate, const LinearWeight& up) {
  return gate.is_int8() && up.is_int8() && round_alike(gate, up);
}

// Columns of the middle that are rounded together: whole groups of what reads them, whole tiles of
// what writes them. 0: too many.
int64_t middle_cols(const GatedCut& gated, const Int8Cut& down) {
  const int64_t tile_rows = std::lcm(gated.gate.tile.rows, gated.up.tile.rows);
  const int64_t unit = std::lcm(down.tile.group, tile_rows);
  return unit > kMostMiddleCols ? 0 : round_up(kMiddleCols, unit);
}

// The middle of an MLP in int8, block by block: it never stands whole as floats.
void round_middle(const GatedCut& gated, const RoundedRows& x, int64_t width,
                  const RoundedRows& middle) {
  const int64_t n = x.view().n, d_middle = gated.gate.product->weight->n_out;
  const int64_t most = std::max(kMiddleRows, kMiddle / width);
  const int64_t height = round_up(ceil_div(n, ceil_div(n, most)), kMiddleRows);
  const int64_t n_across = ceil_div(d_middle, width), group = middle.view().group;
  const auto block = [&](int64_t row, int64_t first) {
    const int64_t rows = std::min(height, n - row), cols = std::min(width, d_middle - first);
    const int64_t stride = width + kLineFloats;  // neighbours in different sets of a cache
    thread_local AlignedVector<float> floats;
    const MatrixView<float> values{grown(floats, rows * stride), rows, cols, stride};
    for (int64_t c = 0; c < cols; c += gated.gate.rows) {
      const int64_t part = std::min(gated.gate.rows, cols - c);
      gated.piece(x.view(row, rows), first + c, part, values.col_range(c, part));
    }
    for (int64_t i = 0; i < rows; ++i) {
      const ActLevels to = middle.levels(row + i, first / group);
      kernels().quantize_row(values.row(i), cols, group, to.levels, to.scales, to.offsets);
    }
  };
  parallel_for(n_across * ceil_div(n, height), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) block(i / n_across * height, i % n_across * width);
  });
}

}  // namespace

void linear_gated(const LinearWeight& gate, const LinearWeight& up, Activation activation,
                  MatrixView<const float> x, MatrixView<float> y, const OnlineChain& online) {
  const Product products[] = {{&gate, y}, {&up, {}}};
  if (is_integer_gate(gate, up)) {
    const GatedCut gated{Int8Cut(products[0], x.rows), Int8Cut(products[1], x.rows), activation};
    if (are_alike(gated.gate, gated.up)) {
      std::vector<Piece> pieces;
      cut(products[0], &gated.gate, gated.gate.piece, pieces);
      RoundedRows rounded(x.rows, x.cols, gated.gate.tile.group);
      rounded.fill(x, online, gate.rounding.get());
      return for_pieces(pieces, [&](const Piece& piece) {
        gated.piece(rounded.view(), piece.first, piece.n_rows,
                    y.col_range(piece.first, piece.n_rows));
      });
    }
  }
  ScratchMatrix whole(x.rows, up.n_out);
  const Product apart[] = {{&gate, y}, {&up, whole.view()}};
  linear(apart, x, online);
  for_rows(
      y, [&](int64_t i) { kernels().activate_gated(activation, whole.row(i), y.cols, y.row(i)); });
}

void linear_mlp(const LinearWeight& gate, const LinearWeight& up, const LinearWeight& down,
                Activation activation, MatrixView<const float> x, MatrixView<float> y,
                const OnlineChain& online) {
  const Product products[] = {{&gate, {}}, {&up, {}}, {&down, y}};
  if (x.rows >= kMiddleRows && is_integer_gate(gate, up) && down.is_int8() &&
      down.rounding == nullptr) {
    const GatedCut gated{Int8Cut(products[0], x.rows), Int8Cut(products[1], x.rows), activation};
    const Int8Cut of_down(products[2], x.rows);
    const int64_t width = middle_cols(gated, of_down);
    if (are_alike(gated.gate, gated.up) && width > 0) {
      RoundedRows rounded(x.rows, x.cols, gated.gate.tile.group);
      rounded.fill(x, online, gate.rounding.get());
      RoundedRows middle(x.rows, down.n_in, of_down.tile.group, RoundedRows::Use::kMiddle);
      round_middle(gated, rounded, width, middle);
      std::vector<Piece> pieces;
      cut(products[2], &of_down, of_down.piece, pieces);
      return run_int8(pieces, middle.view());
    }
  }
  ScratchMatrix middle(x.rows, up.n_out);
  linear_gated(gate, up, activation, x, middle.view(), online);
  linear(down, middle.view(), y);
}

}  // namespace quern
