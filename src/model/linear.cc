// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "kernels/fetch_ahead.h"
#include "kernels/kernels.h"
#include "model/linear_pieces.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// Floats decoded at a time: for a few tokens they pass through the first cache once; for many they
// stay in the second while the tokens go by. Not fewer rows than the dot kernel takes at once, but
// for one token, which reads each but once.
constexpr int64_t kDecodedForFew = 4 << 10;
constexpr int64_t kDecodedForMany = 64 << 10;
constexpr int64_t kMinRows = 8, kMinRowsForOne = 2;

int64_t decode_unit(const LinearWeight& weight) {
  return weight.codec == nullptr ? 1 : weight.codec->decode_unit();
}

int64_t rows_decoded(const LinearWeight& weight, int64_t n) {
  const int64_t floats = n <= kFewRows ? kDecodedForFew : kDecodedForMany;
  const int64_t rows =
      std::max(n == 1 ? kMinRowsForOne : kMinRows, floats / std::max<int64_t>(1, weight.n_in));
  return round_up(rows, decode_unit(weight));
}

int64_t rows_per_piece(const LinearWeight& weight, int64_t n) {
  const int64_t by_cache = std::min<int64_t>(rows_decoded(weight, n), 64);
  const int64_t by_work = kMinWork / std::max<int64_t>(1, n * weight.n_in);
  return std::min(round_up(std::max(by_cache, by_work), decode_unit(weight)), weight.n_out);
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

bool is_rounded_to_floats(const LinearWeight& weight) {
  return weight.codec != nullptr && weight.rounding != nullptr && !weight.is_int8();
}

// Whether products round their input, and one rounding serves all.
bool round_once(std::span<const Product> products) {
  const LinearWeight& first = *products[0].weight;
  return std::all_of(products.begin(), products.end(), [&](const Product& product) {
    const LinearWeight& weight = *product.weight;
    if (!round_alike(weight, first)) return false;
    if (weight.is_bf16()) return first.is_bf16();
    if (!weight.is_int8()) return is_rounded_to_floats(weight) && is_rounded_to_floats(first);
    return first.is_int8() &&
           weight.codec->panel_tile(weight.n_in).group == first.codec->panel_tile(first.n_in).group;
  });
}

// A few lines at a time, so that those ahead are asked for at the pace they are read.
template <class Convert>
void halves_to_float(const Convert& convert, const std::byte* src, int64_t n, float* dst) {
  constexpr int64_t kStep = 256, kLine = 64;
  for (int64_t i = 0; i < n; i += kStep) {
    const std::byte* from = src + 2 * i;
    for (int64_t b = 0; b < 2 * kStep; b += kLine) fetch_ahead(from + kFetchAhead + b);
    convert(from, std::min(kStep, n - i), dst + i);
  }
}

}  // namespace

size_t LinearWeight::n_bytes() const {
  if (pairs != nullptr) return static_cast<size_t>(n_out * padded_terms(n_in) * 2);
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
  if (weight.pairs != nullptr) return unpack_rows(weight, row, n_rows, dst);
  const int64_t n = n_rows * weight.n_in;
  const std::byte* src = weight.dense + row * weight.n_in * dtype_bits(weight.dtype) / 8;
  if (weight.dtype == DType::kBF16) {
    halves_to_float(kernels().bf16_to_float, src, n, dst);
  } else if (weight.dtype == DType::kF16) {
    halves_to_float(kernels().f16_to_float, src, n, dst);
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
    RoundedRows rounded(x.rows, x.cols, group);
    rounded.fill(x, online, weight.rounding.get());
    run_int8(pieces, rounded.view());
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
  std::vector<const Product*> of_values, of_pairs;
  for (const Product& product : products) {
    const LinearWeight& weight = *product.weight;
    QUERN_DCHECK(x.cols == weight.n_in && product.y.cols == weight.n_out &&
                 x.rows == product.y.rows);
    if (weight.is_int8()) {
      cuts.emplace_back(product, x.rows);
    } else if (weight.is_bf16()) {
      of_pairs.push_back(&product);
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
  linear_of_pairs(of_pairs, x, online);
  linear_of_values(std::move(of_values), x, online);
  linear_of_levels(std::move(cuts), x, online);
}

void linear(const LinearWeight& weight, MatrixView<const float> x, MatrixView<float> y,
            const OnlineChain& online) {
  const Product product{&weight, y};
  linear({&product, 1}, x, online);
}

}  // namespace quern
