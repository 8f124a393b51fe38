// SPDX-License-Identifier: Apache-2.0
// What the tests of codecs share: Gaussian matrices, coded and decoded without a solver.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "codecs/codec.h"
#include "gaussian.h"

namespace quern {

// Entries of mean square 1 exactly enough that an error needs no correction.
inline Matrix<float> gaussian_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> w = gaussian(rows, cols, seed);
  double sum = 0;
  for (int64_t i = 0; i < rows * cols; ++i) sum += static_cast<double>(w.data()[i]) * w.data()[i];
  const auto scale = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(rows * cols)));
  for (int64_t i = 0; i < rows * cols; ++i) w.data()[i] *= scale;
  return w;
}

inline CodedMatrix code_matrix(const Codec& codec, const Matrix<float>& w) {
  CodedMatrix codes = *CodedMatrix::create(codec, w.rows(), w.cols());
  Matrix<float> w_hat(w.rows(), w.cols());
  const int64_t group = codec.group_cols(w.cols());
  codec.fit_matrix({w.view()}, codes.mutable_view());
  for (int64_t col = 0; col < w.cols(); col += group) {
    const int64_t width = std::min(group, w.cols() - col);
    codec.fit(w.view().col_range(col, width), {}, 0, col, codes.mutable_view());
    codec.encode(w.view().col_range(col, width), 0, col, codes.mutable_view(),
                 w_hat.view().col_range(col, width));
  }
  return codes;
}

inline Matrix<float> decode_matrix(const Codec& codec, const CodedMatrix& codes) {
  Matrix<float> w(codes.n_out(), codes.n_in());
  codec.decode(codes.view(), 0, codes.n_out(), w.data());
  return w;
}

inline double mean_square_error(const Matrix<float>& a, const Matrix<float>& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) {
    sum += std::pow(static_cast<double>(a.data()[i]) - b.data()[i], 2);
  }
  return sum / static_cast<double>(a.rows() * a.cols());
}

// Of w coded by the codec that the text names.
inline double coding_error(const std::string& text, const Matrix<float>& w) {
  const auto codec = make_codec(text);
  EXPECT_TRUE(codec) << text;
  return mean_square_error(w, decode_matrix(**codec, code_matrix(**codec, w)));
}

// sum weight_j (w_ij - w_hat_ij)^2 of one group, where fit is told of the weights or not.
inline double weighted_error(const std::string& text, const Matrix<float>& w,
                             std::span<const float> weight, bool is_told) {
  const auto codec = make_codec(text);
  EXPECT_TRUE(codec) << text;
  CodedMatrix codes = *CodedMatrix::create(**codec, w.rows(), w.cols());
  Matrix<float> w_hat(w.rows(), w.cols());
  (*codec)->fit(w.view(), is_told ? weight : std::span<const float>(), 0, 0, codes.mutable_view());
  (*codec)->encode(w.view(), 0, 0, codes.mutable_view(), w_hat.view());
  double sum = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) {
      sum += weight[static_cast<size_t>(j)] * std::pow(double{w(i, j)} - w_hat(i, j), 2);
    }
  }
  return sum;
}

inline double coded_bits(const std::string& text, int64_t n_out, int64_t n_in) {
  const auto codec = make_codec(text);
  EXPECT_TRUE(codec) << text;
  return 8 * static_cast<double>(CodedMatrix::create(**codec, n_out, n_in)->n_bytes()) /
         static_cast<double>(n_out * n_in);
}

}  // namespace quern
