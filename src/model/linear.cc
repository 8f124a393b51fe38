// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Floats decoded at a time: for a few tokens they pass through the first cache once; for many they
// stay in the second while the tokens go by. Never fewer rows than the dot kernel takes at once.
constexpr int64_t kDecodedForFew = 4 << 10;
constexpr int64_t kDecodedForMany = 64 << 10;
constexpr int64_t kFewTokens = 8;
constexpr int64_t kMinRows = 8;
// Below this many multiply-adds one piece is all the work: waking a thread costs more.
constexpr int64_t kMinWork = 64 << 10;

int64_t decode_unit(const LinearWeight& weight) {
  return weight.codec == nullptr ? 1 : weight.codec->decode_unit();
}

int64_t rows_decoded(const LinearWeight& weight, int64_t n) {
  const int64_t floats = n <= kFewTokens ? kDecodedForFew : kDecodedForMany;
  const int64_t rows = std::max(kMinRows, floats / std::max<int64_t>(1, weight.n_in));
  return round_up(rows, decode_unit(weight));
}

int64_t rows_per_piece(const LinearWeight& weight, int64_t n) {
  const int64_t by_cache = std::min<int64_t>(rows_decoded(weight, n), 64);
  const int64_t by_work = kMinWork / std::max<int64_t>(1, n * weight.n_in);
  return std::min(round_up(std::max(by_cache, by_work), decode_unit(weight)), weight.n_out);
}

// y[:, first .. first + n_rows) for one piece of rows.
void linear_piece(const LinearWeight& weight, MatrixView<const float> x, int64_t first,
                  int64_t n_rows, MatrixView<float> y) {
  const KernelTable& k = kernels();
  if (weight.codec == nullptr && weight.dtype == DType::kF32) {
    const float* rows = reinterpret_cast<const float*>(weight.dense) + first * weight.n_in;
    k.dot_tile(x.data, x.stride, x.rows, rows, weight.n_in, n_rows, weight.n_in, y.data + first,
               y.stride);
  } else {
    const int64_t step = rows_decoded(weight, x.rows);
    thread_local AlignedVector<float> decoded;
    decoded.resize(static_cast<size_t>(std::min(step, n_rows) * weight.n_in));
    for (int64_t r = 0; r < n_rows; r += step) {
      const int64_t count = std::min(step, n_rows - r);
      decode_rows(weight, first + r, count, decoded.data());
      k.dot_tile(x.data, x.stride, x.rows, decoded.data(), weight.n_in, count, weight.n_in,
                 y.data + first + r, y.stride);
    }
  }
  if (weight.bias.empty()) return;
  for (int64_t i = 0; i < x.rows; ++i) k.add(weight.bias.data() + first, n_rows, y.row(i) + first);
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
  const auto form = codec.runtime_form(weight.codes);
  if (form == nullptr) return weight;
  weight.codec = form->decoder.get();
  weight.codes = form->codes.view();
  weight.owner = form;
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

void linear(const LinearWeight& weight, MatrixView<const float> x, MatrixView<float> y) {
  QUERN_DCHECK(x.cols == weight.n_in && y.cols == weight.n_out && x.rows == y.rows);
  parallel_for(weight.n_out, rows_per_piece(weight, x.rows),
               [&](int64_t begin, int64_t end) { linear_piece(weight, x, begin, end - begin, y); });
}

}  // namespace quern
