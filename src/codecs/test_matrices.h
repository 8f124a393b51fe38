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

inline Matrix<float> decode_matrix(const Decoder& codec, const CodedMatrix& codes) {
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

// A symmetric positive matrix, A A^T + 0.1 I of Gaussian A.
inline Matrix<float> random_metric(int n, uint64_t seed) {
  const Matrix<float> a = gaussian(n, n, seed);
  Matrix<float> metric(n, n);
  for (int t = 0; t < n; ++t) {
    for (int u = 0; u < n; ++u) {
      metric(t, u) = t == u ? 0.1f : 0;
      for (int i = 0; i < n; ++i) metric(t, u) += a(t, i) * a(u, i);
    }
  }
  return metric;
}

// Sum over rows of E metric E^T for w of one block, which encode is told or not, and which
// decoding must agree with.
inline double block_error(const std::string& text, const Matrix<float>& w,
                          const Matrix<float>& metric, bool is_told) {
  const auto codec = make_codec(text);
  EXPECT_TRUE(codec) << text;
  CodedMatrix codes = *CodedMatrix::create(**codec, w.rows(), w.cols());
  const MutableCodes planes = codes.mutable_view();
  Matrix<float> w_hat(w.rows(), w.cols());
  (*codec)->fit_matrix({w.view()}, planes);
  (*codec)->fit(w.view(), {}, 0, 0, planes);
  if (is_told) {
    (*codec)->encode_block(w.view(), metric.view(), 0, 0, planes, w_hat.view());
  } else {
    (*codec)->encode(w.view(), 0, 0, planes, w_hat.view());
  }
  EXPECT_EQ(decode_matrix(**codec, codes), w_hat) << text;
  double sum = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t t = 0; t < w.cols(); ++t) {
      for (int64_t u = 0; u < w.cols(); ++u) {
        sum += (double{w(i, t)} - w_hat(i, t)) * metric(t, u) * (double{w(i, u)} - w_hat(i, u));
      }
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
