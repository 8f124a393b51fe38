// SPDX-License-Identifier: Apache-2.0
#include "model/linear_pieces.h"

#include <algorithm>

#include "base/checked.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

// Bytes of levels decoded at a time: for a few tokens they stay in the first cache, for many in the
// second.
constexpr int64_t kLevelsForFew = 16 << 10;
constexpr int64_t kLevelsForMany = 1 << 20;
constexpr int64_t kRowsForMany = 128;  // all of them meet a block of activations while it is near

}  // namespace

RoundedRows::RoundedRows(int64_t n, int64_t cols, int64_t group, Use use)
    : n_(n), n_groups_(ceil_div(cols, group)), group_(group), stride_(spread(n_groups_ * group)) {
  struct Memory {
    AlignedVector<int8_t> levels;
    std::vector<float> scales;
    std::vector<int32_t> offsets;
  };
  thread_local Memory of_uses[2];
  Memory& memory = of_uses[use == Use::kInput ? 0 : 1];
  const auto n_scales = static_cast<size_t>(n * n_groups_);
  auto n_levels = static_cast<size_t>(n * stride_);
  // One block for the whole model, read over and over: worth whole huge pages.
  if (n_levels > kHugePage / 4) n_levels = round_up(n_levels, kHugePage);
  memory.levels.resize(std::max(memory.levels.size(), n_levels));
  memory.scales.resize(std::max(memory.scales.size(), n_scales));
  memory.offsets.resize(std::max(memory.offsets.size(), n_scales));
  levels_ = memory.levels.data();
  scales_ = memory.scales.data();
  offsets_ = memory.offsets.data();
}

void RoundedRows::fill(MatrixView<const float> x, const OnlineChain& online,
                       const ActRounding* rounding) {
  for_rows_behind(online, x, [&](int64_t i, const float* row) {
    const ActLevels to = levels(i);
    if (rounding == nullptr) {
      kernels().quantize_row(row, x.cols, group_, to.levels, to.scales, to.offsets);
    } else {
      rounding->act->levels(row, x.cols, rounding->ranges, to);
    }
  });
}

Int8Cut::Int8Cut(const Product& of, int64_t n)
    : product(&of), tile(of.weight->codec->panel_tile(of.weight->n_in)) {
  const LinearWeight& weight = *of.weight;
  const bool is_few = n <= kFewRows;
  const int64_t padded = round_up(weight.n_in, tile.group);
  const int64_t tile_cols = tile.cols == 0 ? padded : tile.cols;
  rows = is_few ? tile.rows : round_up(kRowsForMany, tile.rows);
  const int64_t levels = is_few ? kLevelsForFew : kLevelsForMany;
  cols = std::min(padded, std::max<int64_t>(1, levels / rows / tile_cols) * tile_cols);
  const int64_t by_work = kMinWork / std::max<int64_t>(1, n * weight.n_in);
  piece = round_up(std::max(rows, by_work), rows);
}

void int8_piece(const Int8Cut& cut, const Int8Rows& x, int64_t first, int64_t n_rows,
                MatrixView<float> y) {
  const LinearWeight& weight = *cut.product->weight;
  if (x.n == 1 && weight.codec->dot_panels(weight.codes, first, n_rows, x, y.data)) return;
  const int64_t levels_stride = cut.cols * kPanelRows;
  const int64_t scales_stride = cut.cols / cut.tile.group * kPanelRows;
  const auto n_panels = static_cast<size_t>(ceil_div(cut.rows, kPanelRows));
  thread_local AlignedVector<uint8_t> levels;
  thread_local AlignedVector<float> scales;
  levels.resize(n_panels * static_cast<size_t>(levels_stride));
  scales.resize(n_panels * static_cast<size_t>(scales_stride));
  for (int64_t row = first; row < first + n_rows; row += cut.rows) {
    const int64_t height = std::min(cut.rows, first + n_rows - row);
    for (int64_t col = 0; col < weight.n_in; col += cut.cols) {
      const int64_t width = std::min(cut.cols, weight.n_in - col);
      weight.codec->decode_panels(weight.codes, row, height, col, width,
                                  {levels.data(), scales.data(), levels_stride, scales_stride});
      kernels().panel_dot({levels.data(), scales.data(), levels_stride, scales_stride, height,
                           col / cut.tile.group, ceil_div(width, cut.tile.group)},
                          x, y.data + (row - first), y.stride);
    }
  }
}

void add_bias(const LinearWeight& weight, int64_t first, MatrixView<float> y) {
  if (weight.bias.empty()) return;
  for (int64_t i = 0; i < y.rows; ++i) {
    kernels().add(weight.bias.data() + first, y.cols, y.row(i));
  }
}

bool round_alike(const LinearWeight& a, const LinearWeight& b) {
  if (a.rounding == b.rounding) return true;
  return a.rounding != nullptr && b.rounding != nullptr && *a.rounding == *b.rounding;
}

void cut(const Product& product, const Int8Cut* how, int64_t piece, std::vector<Piece>& pieces) {
  for (int64_t row = 0; row < product.weight->n_out; row += piece) {
    pieces.push_back({&product, how, row, std::min(piece, product.weight->n_out - row)});
  }
}

void run_int8(const std::vector<Piece>& pieces, const Int8Rows& x) {
  for_pieces(pieces, [&](const Piece& piece) {
    const MatrixView<float> y = piece.product->y.col_range(piece.first, piece.n_rows);
    int8_piece(*piece.how, x, piece.first, piece.n_rows, y);
    add_bias(*piece.product->weight, piece.first, y);
  });
}

}  // namespace quern
