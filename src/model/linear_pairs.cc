// SPDX-License-Identifier: Apache-2.0
// Products of inputs and weights that are both rounded to bfloat16: weights are blocks of pairs
// (kernels/pair_product.h), made when a dense one is opened, or of a coded one while the rows of
// the input go by.
#include <algorithm>
#include <numeric>

#include "base/float_types.h"
#include "kernels/kernels.h"
#include "model/linear_pieces.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

constexpr int64_t kBlockRows = 32;     // rows of weights in a block: two tiles
constexpr int64_t kRowsForMany = 128;  // all of them meet rows of the input while those are near

// All rows of an input; the calling thread keeps the memory for the next.
class PackedInput {
 public:
  PackedInput(MatrixView<const float> x, const OnlineChain& online)
      : n_(x.rows), n_terms_(padded_terms(x.cols)), stride_(spread(n_terms_ * 2) / 2) {
    thread_local AlignedVector<uint16_t> rows;
    data_ = grown(rows, n_ * stride_);
    for_rows_behind(online, x, [&](int64_t i, const float* row) {
      kernels().pack_pairs(row, x.cols, 1, x.cols, data_ + i * stride_);
    });
  }

  int64_t n() const { return n_; }
  int64_t n_terms() const { return n_terms_; }

  // y[n, n_rows] of blocks of n_rows rows of weights, the last perhaps short.
  void multiply(const uint16_t* blocks, int64_t n_rows, MatrixView<float> y) const {
    thread_local std::vector<const uint16_t*> at;
    at.clear();
    for (int64_t r = 0; r < n_rows; r += kBlockRows) at.push_back(blocks + r * n_terms_);
    const int64_t n_whole = n_rows / kBlockRows, n_left = n_rows % kBlockRows;
    PairProduct product;
    product.packed_a = data_;
    product.ld_a = stride_;
    product.n_rows = n_;
    product.n_v = n_terms_;
    product.ld_y = y.stride;
    const auto meet = [&](int64_t first, int64_t n_blocks, int64_t n) {
      product.blocks = at.data() + first;
      product.n_blocks = n_blocks;
      product.n = product.step_y = n;
      product.y = y.data + first * kBlockRows;
      kernels().pair_product(product);
    };
    if (n_whole > 0) meet(0, n_whole, kBlockRows);
    if (n_left > 0) meet(n_whole, 1, n_left);
  }

 private:
  int64_t n_, n_terms_, stride_;
  uint16_t* data_;
};

// Rows w[n_rows, n_in] to blocks.
void pack_blocks(const float* w, int64_t n_rows, int64_t n_in, uint16_t* blocks) {
  for (int64_t r = 0; r < n_rows; r += kBlockRows) {
    kernels().pack_pairs(w + r * n_in, n_in, std::min(kBlockRows, n_rows - r), n_in,
                         blocks + r * padded_terms(n_in));
  }
}

// Rows that are decoded together: whole blocks.
int64_t rows_decoded(const LinearWeight& weight) {
  return std::lcm(kBlockRows, weight.codec == nullptr ? 1 : weight.codec->decode_unit());
}
// Rows that meet n rows of the input together.
int64_t rows_together(const LinearWeight& weight, int64_t n) {
  return round_up(n <= kFewRows ? kBlockRows : kRowsForMany, rows_decoded(weight));
}

// Rows [row, row + n_rows) to blocks.
void pack_decoded(const LinearWeight& weight, int64_t row, int64_t n_rows, uint16_t* blocks) {
  thread_local AlignedVector<float> decoded;
  const int64_t step = rows_decoded(weight);
  for (int64_t r = 0; r < n_rows; r += step) {
    const int64_t count = std::min(step, n_rows - r);
    float* const values = grown(decoded, count * weight.n_in);
    decode_rows(weight, row + r, count, values);
    pack_blocks(values, count, weight.n_in, blocks + r * padded_terms(weight.n_in));
  }
}

void multiply_piece(const Piece& piece, const PackedInput& x) {
  const LinearWeight& weight = *piece.product->weight;
  const MatrixView<float> y = piece.product->y.col_range(piece.first, piece.n_rows);
  const int64_t step = rows_together(weight, x.n());
  thread_local AlignedVector<uint16_t> packed;
  for (int64_t r = 0; r < piece.n_rows; r += step) {
    const int64_t row = piece.first + r, count = std::min(step, piece.n_rows - r);
    const uint16_t* blocks;
    if (weight.pairs != nullptr) {
      blocks = weight.pairs + row * x.n_terms();
    } else {
      uint16_t* const own = grown(packed, count * x.n_terms());
      pack_decoded(weight, row, count, own);
      blocks = own;
    }
    x.multiply(blocks, count, y.col_range(r, count));
  }
  add_bias(weight, piece.first, y);
}

}  // namespace

LinearWeight in_runtime_form(LinearWeight dense) {
  if (dense.codec != nullptr || !dense.is_bf16() || dense.dense == nullptr) return dense;
  const int64_t n_terms = padded_terms(dense.n_in);
  auto pairs =
      std::make_shared<AlignedVector<uint16_t>>(static_cast<size_t>(dense.n_out * n_terms));
  const int64_t n_blocks = ceil_div(dense.n_out, kBlockRows);
  parallel_for(n_blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlockRows, last = std::min(dense.n_out, end * kBlockRows);
    pack_decoded(dense, first, last - first, pairs->data() + first * n_terms);
  });
  dense.dense = nullptr;
  dense.pairs = pairs->data();
  dense.owner = std::move(pairs);
  return dense;
}

void unpack_rows(const LinearWeight& weight, int64_t row, int64_t n_rows, float* dst) {
  for (int64_t i = row; i < row + n_rows; ++i) {
    const int64_t first = i / kBlockRows * kBlockRows;
    const int64_t height = std::min(kBlockRows, weight.n_out - first);
    const uint16_t* block = weight.pairs + first * padded_terms(weight.n_in);
    for (int64_t j = 0; j < weight.n_in; ++j) {
      *dst++ = bf16_to_float(block[pair_place(height, j, i - first)]);
    }
  }
}

void linear_of_pairs(const std::vector<const Product*>& products, MatrixView<const float> x,
                     const OnlineChain& online) {
  if (products.empty()) return;
  std::vector<Piece> pieces;
  for (const Product* product : products) {
    const int64_t rows = rows_together(*product->weight, x.rows);
    const int64_t by_work = kMinWork / std::max<int64_t>(1, x.rows * x.cols);
    cut(*product, nullptr, round_up(std::max(rows, by_work), rows), pieces);
  }
  const PackedInput packed(x, online);
  for_pieces(pieces, [&](const Piece& piece) { multiply_piece(piece, packed); });
}

}  // namespace quern
