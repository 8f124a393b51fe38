// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// Floats decoded at a time: for a few tokens they pass through the first cache once; for many they
// stay in the second while the tokens go by. Not fewer rows than the dot kernel takes at once, but
// for one token, which reads each but once.
constexpr int64_t kDecodedForFew = 4 << 10;
constexpr int64_t kDecodedForMany = 64 << 10;
constexpr int64_t kFewTokens = 8;
constexpr int64_t kMinRows = 8, kMinRowsForOne = 2;
// A piece of work has so many multiply-adds, if there are as many: below, waking a thread and
// beginning anew cost more than is won.
constexpr int64_t kMinWork = 256 << 10;
constexpr int64_t kActivated =
    8 << 10;  // values of an elementwise pass that a thread takes at once

int64_t decode_unit(const LinearWeight& weight) {
  return weight.codec == nullptr ? 1 : weight.codec->decode_unit();
}

int64_t rows_decoded(const LinearWeight& weight, int64_t n) {
  const int64_t floats = n <= kFewTokens ? kDecodedForFew : kDecodedForMany;
  const int64_t rows =
      std::max(n == 1 ? kMinRowsForOne : kMinRows, floats / std::max<int64_t>(1, weight.n_in));
  return round_up(rows, decode_unit(weight));
}

int64_t rows_per_piece(const LinearWeight& weight, int64_t n) {
  const int64_t by_cache = std::min<int64_t>(rows_decoded(weight, n), 64);
  const int64_t by_work = kMinWork / std::max<int64_t>(1, n * weight.n_in);
  return std::min(round_up(std::max(by_cache, by_work), decode_unit(weight)), weight.n_out);
}

// Biases of rows [first, first + y.cols) of W.
void add_bias(const LinearWeight& weight, int64_t first, MatrixView<float> y) {
  if (weight.bias.empty()) return;
  for (int64_t i = 0; i < y.rows; ++i) {
    kernels().add(weight.bias.data() + first, y.cols, y.row(i));
  }
}

// y[x.rows, n_rows] for one piece of rows.
void linear_piece(const LinearWeight& weight, MatrixView<const float> x, int64_t first,
                  int64_t n_rows, MatrixView<float> y) {
  const KernelTable& k = kernels();
  if (weight.codec == nullptr && weight.dtype == DType::kF32) {
    const float* rows = reinterpret_cast<const float*>(weight.dense) + first * weight.n_in;
    k.dot_tile(x.data, x.stride, x.rows, rows, weight.n_in, n_rows, weight.n_in, y.data, y.stride);
  } else {
    const int64_t step = rows_decoded(weight, x.rows);
    thread_local AlignedVector<float> decoded;
    decoded.resize(static_cast<size_t>(std::min(step, n_rows) * weight.n_in));
    for (int64_t r = 0; r < n_rows; r += step) {
      const int64_t count = std::min(step, n_rows - r);
      decode_rows(weight, first + r, count, decoded.data());
      k.dot_tile(x.data, x.stride, x.rows, decoded.data(), weight.n_in, count, weight.n_in,
                 y.data + r, y.stride);
    }
  }
  add_bias(weight, first, y);
}

// Bytes of levels decoded at a time: for a few tokens they stay in the first cache, for many in the
// second.
constexpr int64_t kLevelsForFew = 16 << 10;
constexpr int64_t kLevelsForMany = 512 << 10;
constexpr int64_t kRowsForMany = 64;  // the kernel takes four panels at once

// A stride for rows of n bytes so that neighbours lie in different sets of a cache: an odd number
// of lines.
int64_t spread(int64_t n) {
  constexpr int64_t kLine = 64;
  return (ceil_div(n, kLine) | 1) * kLine;
}

// The input of one product behind its online operators, rounded as `rounding` says, or where that
// is null to 8 bits in groups; the calling thread keeps the memory for the next.
class RoundedRows {
 public:
  RoundedRows(MatrixView<const float> x, const OnlineChain& online, int64_t group,
              const ActRounding* rounding)
      : n_(x.rows),
        n_groups_(ceil_div(x.cols, group)),
        group_(group),
        stride_(spread(n_groups_ * group)) {
    const auto n = static_cast<size_t>(x.rows * n_groups_);
    thread_local AlignedVector<int8_t> levels;
    thread_local std::vector<float> scales;
    thread_local std::vector<int32_t> offsets;
    auto n_levels = static_cast<size_t>(x.rows * stride_);
    // One block for the whole model, read over and over: worth whole huge pages.
    if (n_levels > kHugePage / 4) n_levels = round_up(n_levels, kHugePage);
    levels.resize(std::max(levels.size(), n_levels));
    scales.resize(std::max(scales.size(), n));
    offsets.resize(std::max(offsets.size(), n));
    levels_ = levels.data();
    scales_ = scales.data();
    offsets_ = offsets.data();
    for_rows_behind(online, x, [&](int64_t i, const float* row) {
      const ActLevels to = {group_, levels_ + i * stride_, scales_ + i * n_groups_,
                            offsets_ + i * n_groups_};
      if (rounding == nullptr) {
        kernels().quantize_row(row, x.cols, group_, to.levels, to.scales, to.offsets);
      } else {
        rounding->act->levels(row, x.cols, rounding->ranges, to);
      }
    });
  }
  Int8Rows view() const { return {levels_, scales_, offsets_, n_, n_groups_, group_, stride_}; }

 private:
  int64_t n_, n_groups_, group_, stride_;
  int8_t* levels_;
  float* scales_;
  int32_t* offsets_;
};

// How a product is cut.
struct Int8Cut {
  const Product* product;
  PanelTile tile;
  int64_t piece;       // rows that a thread takes
  int64_t rows, cols;  // decoded at a time

  Int8Cut(const Product& of, int64_t n)
      : product(&of), tile(of.weight->codec->panel_tile(of.weight->n_in)) {
    const LinearWeight& weight = *of.weight;
    const bool is_few = n <= kFewTokens;
    const int64_t padded = round_up(weight.n_in, tile.group);
    const int64_t tile_cols = tile.cols == 0 ? padded : tile.cols;
    rows = is_few ? tile.rows : round_up(kRowsForMany, tile.rows);
    const int64_t levels = is_few ? kLevelsForFew : kLevelsForMany;
    cols = std::min(padded, std::max<int64_t>(1, levels / rows / tile_cols) * tile_cols);
    const int64_t by_work = kMinWork / std::max<int64_t>(1, n * weight.n_in);
    piece = round_up(std::max(rows, by_work), rows);
  }
};

// Rows [first, first + n_rows) of one piece against x, to y[x.n, n_rows], without the bias.
void int8_piece(const Int8Cut& cut, const Int8Rows& x, int64_t first, int64_t n_rows,
                MatrixView<float> y) {
  const LinearWeight& weight = *cut.product->weight;
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

bool round_alike(const LinearWeight& a, const LinearWeight& b) {
  if (a.rounding == b.rounding) return true;
  return a.rounding != nullptr && b.rounding != nullptr && *a.rounding == *b.rounding;
}

bool is_rounded_to_floats(const LinearWeight& weight) {
  return weight.codec != nullptr && weight.rounding != nullptr && !weight.is_int8();
}

// Whether products round their input, and one rounding serves all.
bool round_once(std::span<const Product> products) {
  const LinearWeight& first = *products[0].weight;
  return std::all_of(products.begin(), products.end(), [&](const Product& product) {
    const LinearWeight& weight = *product.weight;
    if (!round_alike(weight, first)) return false;
    if (!weight.is_int8()) return is_rounded_to_floats(weight) && is_rounded_to_floats(first);
    return first.is_int8() &&
           weight.codec->panel_tile(weight.n_in).group == first.codec->panel_tile(first.n_in).group;
  });
}

// Rows of a product that a thread takes at once.
struct Piece {
  const Product* product;
  const Int8Cut* how;  // null: in float
  int64_t first, n_rows;
};

void cut(const Product& product, const Int8Cut* how, int64_t piece, std::vector<Piece>& pieces) {
  for (int64_t row = 0; row < product.weight->n_out; row += piece) {
    pieces.push_back({&product, how, row, std::min(piece, product.weight->n_out - row)});
  }
}

template <class Body>
void for_pieces(const std::vector<Piece>& pieces, const Body& body) {
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(pieces[static_cast<size_t>(i)]);
  });
}

// linear_gated piece by piece: the rows of `up` meet those of `gate` while both are in a cache.
void gated_pieces(const Int8Cut& gate, const Int8Cut& up, Activation activation,
                  MatrixView<const float> x, MatrixView<float> y, const OnlineChain& online) {
  std::vector<Piece> pieces;
  cut(*gate.product, &gate, gate.piece, pieces);
  const RoundedRows rounded(x, online, gate.tile.group, gate.product->weight->rounding.get());
  for_pieces(pieces, [&](const Piece& piece) {
    thread_local AlignedVector<float> part;
    part.resize(std::max(part.size(), static_cast<size_t>(x.rows * piece.n_rows)));
    const MatrixView<float> g = y.col_range(piece.first, piece.n_rows);
    const MatrixView<float> u{part.data(), x.rows, piece.n_rows};
    for (const Int8Cut* one : {&gate, &up}) {
      const MatrixView<float> to = one == &gate ? g : u;
      int8_piece(*one, rounded.view(), piece.first, piece.n_rows, to);
      add_bias(*one->product->weight, piece.first, to);
    }
    for (int64_t i = 0; i < x.rows; ++i) {
      kernels().activate_gated(activation, u.row(i), u.cols, g.row(i));
    }
  });
}

}  // namespace

size_t LinearWeight::n_bytes() const {
  if (codec == nullptr) return static_cast<size_t>(n_out * n_in * dtype_bits(dtype) / 8);
  const auto planes = codec->planes(n_out, n_in);
  size_t total = 0;
  for (size_t i = 0; planes && i < planes->size(); ++i) total += (*planes)[i].n_bytes();
  return total;
}

LinearWeight in_runtime_form(LinearWeight weight, const Codec& codec) {
  const Reading reading = weight.is_int8() ? Reading::kPanels : Reading::kValues;
  const auto form = codec.runtime_form(weight.codes, reading);
  if (form == nullptr) return weight;
  weight.codec = form->decoder.get();
  weight.codes = form->codes.view();
  weight.owner = form;
  return weight;
}

Status check_rounding(const LinearWeight& weight) {
  if (weight.codec == nullptr || weight.rounding == nullptr) return {};
  return weight.rounding->act->check(weight.n_in, weight.codec->panel_tile(weight.n_in).group);
}

LinearWeight coded_weight(CodedMatrix codes, const Codec& codec, std::vector<float> bias) {
  const auto owner = std::make_shared<const CodedMatrix>(std::move(codes));
  LinearWeight weight;
  weight.n_out = owner->n_out();
  weight.n_in = owner->n_in();
  weight.codec = &codec;
  weight.codes = owner->view();
  weight.bias = std::move(bias);
  weight.owner = owner;
  return weight;
}

LinearWeight dense_weight(Matrix<float> values, std::vector<float> bias) {
  const auto owner = std::make_shared<const Matrix<float>>(std::move(values));
  LinearWeight weight;
  weight.n_out = owner->rows();
  weight.n_in = owner->cols();
  weight.dense = reinterpret_cast<const std::byte*>(owner->data());
  weight.bias = std::move(bias);
  weight.owner = owner;
  return weight;
}

void decode_rows(const LinearWeight& weight, int64_t row, int64_t n_rows, float* dst) {
  if (weight.codec != nullptr) {
    weight.codec->decode(weight.codes, row, n_rows, dst);
    return;
  }
  const int64_t n = n_rows * weight.n_in;
  const std::byte* src = weight.dense + row * weight.n_in * dtype_bits(weight.dtype) / 8;
  if (weight.dtype == DType::kBF16) {
    kernels().bf16_to_float(src, n, dst);
  } else if (weight.dtype == DType::kF16) {
    kernels().f16_to_float(src, n, dst);
  } else {
    convert_to_float(weight.dtype, src, n, dst);
  }
}

namespace {

// Products whose input is rounded to floats: such as take the same ones go together.
void linear_of_values(std::vector<const Product*> products, MatrixView<const float> x,
                      const OnlineChain& online) {
  std::vector<Piece> pieces;
  for (auto first = products.begin(), next = first; first != products.end(); first = next) {
    const LinearWeight& weight = *(*first)->weight;
    next = std::stable_partition(first, products.end(), [&](const Product* product) {
      return round_alike(*product->weight, weight);
    });
    pieces.clear();
    for (auto product = first; product != next; ++product) {
      cut(**product, nullptr, rows_per_piece(*(*product)->weight, x.rows), pieces);
    }
    ScratchMatrix rounded(x.rows, x.cols);
    const MatrixView<float> values = rounded.view();
    for_rows_behind(online, x, [&](int64_t i, const float* row) {
      weight.rounding->values(row, x.cols, values.row(i));
    });
    for_pieces(pieces, [&](const Piece& piece) {
      linear_piece(*piece.product->weight, values, piece.first, piece.n_rows,
                   piece.product->y.col_range(piece.first, piece.n_rows));
    });
  }
}

// Products of integers: such as take the same levels go together.
void linear_of_levels(std::vector<Int8Cut> cuts, MatrixView<const float> x,
                      const OnlineChain& online) {
  std::vector<Piece> pieces;
  for (auto first = cuts.begin(), next = first; first != cuts.end(); first = next) {
    const LinearWeight& weight = *first->product->weight;
    const int64_t group = first->tile.group;
    next = std::stable_partition(first, cuts.end(), [&](const Int8Cut& how) {
      return how.tile.group == group && round_alike(*how.product->weight, weight);
    });
    pieces.clear();
    for (auto how = first; how != next; ++how) cut(*how->product, &*how, how->piece, pieces);
    const RoundedRows rounded(x, online, group, weight.rounding.get());
    for_pieces(pieces, [&](const Piece& piece) {
      const MatrixView<float> y = piece.product->y.col_range(piece.first, piece.n_rows);
      int8_piece(*piece.how, rounded.view(), piece.first, piece.n_rows, y);
      add_bias(*piece.product->weight, piece.first, y);
    });
  }
}

}  // namespace

void linear(std::span<const Product> products, MatrixView<const float> x,
            const OnlineChain& online) {
  if (!online.empty() && !round_once(products)) {
    ScratchMatrix behind(x.rows, x.cols);
    put_behind(online, x, behind.view());
    return linear(products, behind.view());
  }
  std::vector<Piece> pieces;
  std::vector<Int8Cut> cuts;
  std::vector<const Product*> of_values;
  for (const Product& product : products) {
    const LinearWeight& weight = *product.weight;
    QUERN_DCHECK(x.cols == weight.n_in && product.y.cols == weight.n_out &&
                 x.rows == product.y.rows);
    if (weight.is_int8()) {
      cuts.emplace_back(product, x.rows);
    } else if (is_rounded_to_floats(weight)) {
      of_values.push_back(&product);
    } else {
      cut(product, nullptr, rows_per_piece(weight, x.rows), pieces);
    }
  }
  for_pieces(pieces, [&](const Piece& piece) {
    linear_piece(*piece.product->weight, x, piece.first, piece.n_rows,
                 piece.product->y.col_range(piece.first, piece.n_rows));
  });
  linear_of_values(std::move(of_values), x, online);
  linear_of_levels(std::move(cuts), x, online);
}

void linear(const LinearWeight& weight, MatrixView<const float> x, MatrixView<float> y,
            const OnlineChain& online) {
  const Product product{&weight, y};
  linear({&product, 1}, x, online);
}

void linear_gated(const LinearWeight& gate, const LinearWeight& up, Activation activation,
                  MatrixView<const float> x, MatrixView<float> y, const OnlineChain& online) {
  const Product products[] = {{&gate, y}, {&up, {}}};
  if (gate.is_int8() && up.is_int8() && round_alike(gate, up)) {
    const Int8Cut of_gate(products[0], x.rows), of_up(products[1], x.rows);
    if (of_gate.tile.group == of_up.tile.group && of_gate.piece == of_up.piece) {
      return gated_pieces(of_gate, of_up, activation, x, y, online);
    }
  }
  ScratchMatrix whole(x.rows, up.n_out);
  const Product apart[] = {{&gate, y}, {&up, whole.view()}};
  linear(apart, x, online);
  parallel_for(x.rows, ceil_div(kActivated, y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels().activate_gated(activation, whole.row(i), y.cols, y.row(i));
    }
  });
}

}  // namespace quern
