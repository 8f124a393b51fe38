// SPDX-License-Identifier: Apache-2.0
#include "codecs/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/checked.h"
#include "base/parallel.h"
#include "base/random.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t piece(const Codec& codec, int64_t at_least) {
  return ceil_div(at_least, codec.block_rows()) * codec.block_rows();
}

}  // namespace

void code_to_nearest(const Codec& codec, MatrixView<const float> w, const MutableCodes& codes,
                     MatrixView<float> w_hat) {
  const int64_t group = codec.group_cols(w.cols);
  codec.fit_matrix({w}, codes);
  parallel_for(w.rows, piece(codec, codec.encode_rows()), [&](int64_t begin, int64_t end) {
    for (int64_t col = 0; col < w.cols; col += group) {
      const int64_t width = std::min(group, w.cols - col);
      const auto part = w.row_range(begin, end - begin).col_range(col, width);
      codec.fit(part, {}, begin, col, codes);
      codec.encode(part, begin, col, codes,
                   w_hat.row_range(begin, end - begin).col_range(col, width));
    }
  });
}

Result<CodecMeasure> measure(const Codec& codec, const MeasureOptions& options) {
  const int64_t n_out = options.n_out, n_in = options.n_in, n = n_out * n_in;
  Matrix<float> w(n_out, n_in), w_hat(n_out, n_in);
  Random random(options.seed);
  for (int64_t i = 0; i < n; ++i) w.data()[i] = static_cast<float>(random.gaussian());
  QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(codec, n_out, n_in));
  CodecMeasure result;
  result.bits = 8.0 * static_cast<double>(codes.n_bytes()) / static_cast<double>(n);

  auto start = Clock::now();
  code_to_nearest(codec, w.view(), codes.mutable_view(), w_hat.view());
  result.encode_weights_per_second = static_cast<double>(n) / seconds_since(start);

  int passes = 0;
  start = Clock::now();
  do {
    parallel_for(n_out, piece(codec, 16), [&](int64_t begin, int64_t end) {
      codec.decode(codes.view(), begin, end - begin, w_hat.row(begin));
    });
    ++passes;
  } while (seconds_since(start) < 0.05);
  result.decode_weights_per_second = passes * static_cast<double>(n) / seconds_since(start);

  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double error = static_cast<double>(w.data()[i]) - w_hat.data()[i];
    sum += error * error;
  }
  result.mse = sum / static_cast<double>(n);
  result.gap_db = 10 * std::log10(result.mse) + 20 * std::log10(2.0) * result.bits;
  return result;
}

}  // namespace quern
