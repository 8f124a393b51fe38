// SPDX-License-Identifier: Apache-2.0
#include "codecs/codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <tuple>
#include <vector>

#include "base/random.h"
#include "codecs/codebook_svd.h"
#include "codecs/codec.h"
#include "codecs/test_matrices.h"
#include "gaussian.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

struct Coded {
  CodedMatrix codes;
  Matrix<float> w_hat;
};

Coded code(const std::string& text, const Matrix<float>& w, std::span<const float> weight = {}) {
  const auto codec = *make_codec(text);
  Coded coded{*CodedMatrix::create(*codec, w.rows(), w.cols()), Matrix<float>(w.rows(), w.cols())};
  const MutableCodes codes = coded.codes.mutable_view();
  codec->fit_matrix({w.view(), weight}, codes);
  const int64_t group = codec->group_cols(w.cols());
  for (int64_t col = 0; col < w.cols(); col += group) {
    const int64_t n = std::min(group, w.cols() - col);
    const auto part = w.view().col_range(col, n);
    codec->fit(part, weight.empty() ? weight : weight.subspan(static_cast<size_t>(col), n), 0, col,
               codes);
    codec->encode(part, 0, col, codes, coded.w_hat.view().col_range(col, n));
  }
  return coded;
}

double mse(const Matrix<float>& a, const Matrix<float>& b, std::span<const float> weight = {}) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j) {
      sum += (weight.empty() ? 1.0 : weight[static_cast<size_t>(j)]) *
             std::pow(static_cast<double>(a(i, j)) - b(i, j), 2);
    }
  }
  return sum / static_cast<double>(a.rows() * a.cols());
}

CodebookSample random_sample(int dim, int64_t n, uint64_t seed) {
  CodebookSample sample{dim, {}, {}};
  Random random(seed);
  for (int64_t i = 0; i < n * dim; ++i) {
    sample.x.push_back(static_cast<float>(random.gaussian()));
    sample.weight.push_back(static_cast<float>(random.uniform()) + 0.01f);
  }
  return sample;
}

TEST(Codebook, FastNearestAgreesWithTheReferenceTiesIncluded) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(1);
  for (const int dim : {1, 2, 4}) {
    for (const int64_t k : {2, 4, 8, 16, 32, 64, 256}) {
      CodebookPoints points(k, dim);
      for (int64_t c = 0; c < k; ++c) {
        for (int t = 0; t < dim; ++t) points.at(c, t) = static_cast<float>(random.below(5));
      }
      for (int trial = 0; trial < 50; ++trial) {
        float x[4], weight[4];
        for (int t = 0; t < 4; ++t) {
          x[t] = 0.5f * static_cast<float>(random.below(9));
          weight[t] = static_cast<float>(random.below(3));
        }
        EXPECT_EQ(codebook_nearest_avx512(points, x, weight),
                  codebook_nearest_ref(points, x, weight))
            << k << " points of dim " << dim;
      }
    }
  }
}

TEST(Codebook, FastDecoderHasTheBitsOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(2);
  for (const int dim : {1, 2, 4}) {
    for (const int width : {1, 2, 3, 4, 5, 6, 7, 8, 10, 12}) {
      if (dim < 4 && width > 8) continue;
      for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 256}) {
        // Exact allocations, so that a sanitizer sees any read past row or table.
        std::vector<uint8_t> codes(static_cast<size_t>(((n + dim - 1) / dim * width + 7) / 8));
        std::vector<int8_t> table(static_cast<size_t>(dim) << width);
        for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
        for (int8_t& byte : table) byte = static_cast<int8_t>(random.next());
        const CodebookRow row{
            codes.data(), static_cast<int64_t>(codes.size()), table.data(), 0.3f, dim, width, n};
        std::vector<float> expected(static_cast<size_t>(n)), got(expected);
        codebook_decode_ref(row, expected.data());
        codebook_decode_avx512(row, got.data());
        EXPECT_EQ(got, expected) << "dim " << dim << ", " << width << " bits, n " << n;
      }
    }
  }
}

TEST(Codebook, FastPanelsHaveTheBytesOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(3);
  for (const int dim : {1, 2, 4}) {
    for (int width = 1; dim << width <= 256; ++width) {
      for (const int64_t n : {1, 7, 16, 17, 33, 64, 100, 256}) {
        for (const int64_t n_rows : {1, 5, 16}) {
          // Exact allocations, so that a sanitizer sees any read past row or table.
          const int64_t bytes = ((n + dim - 1) / dim * width + 7) / 8;
          const int64_t stride = bytes + 3;
          std::vector<uint8_t> codes(static_cast<size_t>((n_rows - 1) * stride + bytes));
          for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
          std::vector<std::vector<int8_t>> tables(static_cast<size_t>(n_rows));
          CodebookPanel rows{codes.data(), stride, bytes, {}, dim, width, n_rows, n};
          for (size_t r = 0; r < tables.size(); ++r) {
            for (int i = 0; i < dim << width; ++i) {
              tables[r].push_back(static_cast<int8_t>(random.next()));
            }
            rows.tables[r] = tables[r].data();
          }
          std::vector<uint8_t> want(static_cast<size_t>((n + 3) / 4 * 64)), got(want);
          codebook_panel_ref(rows, want.data());
          codebook_panel_avx512(rows, got.data());
          for (size_t i = 0; i < want.size(); ++i) {
            const auto row = static_cast<int64_t>(i / 4 % 16);
            if (row >= n_rows || static_cast<int64_t>(i / 64 * 4 + i % 4) >= n) continue;
            ASSERT_EQ(got[i], want[i]) << "dim " << dim << ", " << width << " bits, n " << n;
          }
        }
      }
    }
  }
}

TEST(Codebook, TheLossOfTheFitNeverRises) {
  for (const int dim : {1, 2, 4}) {
    const CodebookSample sample = random_sample(dim, 500, 3);
    double last = 1e30;
    for (int iterations = 0; iterations < 12; ++iterations) {
      CodebookPoints points = codebook_seeds(sample, 16);
      const double loss = codebook_cluster(sample, iterations, points);
      EXPECT_LE(loss, last) << "dim " << dim << ", " << iterations;
      last = loss;
    }
  }
}

// The fixed point of both steps under one weight: each point is the weighted mean of what it
// serves. Weights inverted in one of the steps would fail here.
TEST(Codebook, PointsAreWeightedMeansOfWhatTheyServe) {
  const CodebookSample sample = random_sample(2, 400, 4);
  CodebookPoints points = codebook_seeds(sample, 8);
  codebook_cluster(sample, 1000, points);
  std::vector<double> sum(16), mass(16);
  for (int64_t i = 0; i < sample.size(); ++i) {
    const float *x = &sample.x[static_cast<size_t>(2 * i)],
                *weight = &sample.weight[static_cast<size_t>(2 * i)];
    const int64_t c = codebook_nearest_ref(points, x, weight);
    for (int64_t t = 0; t < 2; ++t) {
      sum[static_cast<size_t>(2 * c + t)] += static_cast<double>(weight[t]) * x[t];
      mass[static_cast<size_t>(2 * c + t)] += weight[t];
    }
  }
  for (int64_t c = 0; c < 8; ++c) {
    for (int t = 0; t < 2; ++t) {
      const auto place = static_cast<size_t>(2 * c + t);
      EXPECT_NEAR(points.at(c, t), sum[place] / mass[place], 1e-2);
    }
  }
}

TEST(Codebook, BlocksAreCodedInTheMetricThatIsPassed) {
  for (const auto& [text, dim, width] :
       {std::tuple{"codebook(2, rows=32)", 2, 2}, std::tuple{"codebook(1, dim=4, rows=64)", 4, 4},
        std::tuple{"codebook(1, dim=4, rows=64)", 4, 3}}) {
    const Matrix<float> w = gaussian_matrix(300, width, 8);
    Matrix<float> even(width, width), singular(width, width);
    for (int t = 0; t < width; ++t) even(t, t) = 0.3f;
    const auto ratio = [&, name = text](const Matrix<float>& metric) {
      return block_error(name, w, metric, true) / block_error(name, w, metric, false);
    };
    EXPECT_LT(ratio(random_metric(width, 9)), 0.93) << text << ", " << width;
    EXPECT_EQ(ratio(even), 1) << text << ", " << width;
    block_error(text, w, singular, true);  // decodes to what it says
  }
}

TEST(Codebook, EmptyClustersMoveToWhatIsServedWorst) {
  // 90 of 100 vectors are equal: nearly all seeds fall on one another.
  CodebookSample sample{1, std::vector<float>(100, 1.0f), std::vector<float>(100, 1.0f)};
  for (size_t i = 0; i < 7; ++i) sample.x[i] = static_cast<float>(10 + i);
  CodebookPoints points = codebook_seeds(sample, 8);
  EXPECT_EQ(codebook_cluster(sample, 50, points), 0) << "eight values, eight points";
}

TEST(Codebook, OneGroupIsKMeans) {
  // Errors of unit Gaussian k-means: dim 1 is Lloyd-Max. Bytes cost up to a part in a hundred more.
  const Matrix<float> w = gaussian(64, 1024, 5);
  const std::pair<const char*, double> rows[] = {{"codebook(1, dim=1, rows=64, cols=0)", .36338},
                                                 {"codebook(2, dim=1, rows=64, cols=0)", .11748},
                                                 {"codebook(3, dim=1, rows=64, cols=0)", .03455},
                                                 {"codebook(2, rows=64, cols=0)", .1099},
                                                 {"codebook(3, rows=64, cols=0)", .0304},
                                                 {"codebook(1.5, dim=4, rows=64, cols=0)", .1856}};
  for (const auto& [text, expected] : rows) {
    EXPECT_LE(mse(w, code(text, w).w_hat), 1.01 * expected) << text;
  }
}

TEST(SlowCodebook, LargeTablesOnManyWeights) {
  const Matrix<float> w = gaussian(256, 2048, 6);
  const std::pair<const char*, double> rows[] = {{"codebook(2, rows=256, cols=0)", .1099},
                                                 {"codebook(3, rows=256, cols=0)", .0304},
                                                 {"codebook(4, rows=256, cols=0)", .00836},
                                                 {"codebook(2, dim=4, rows=256, cols=0)", .0974},
                                                 {"codebook(2.5, dim=4, rows=256, cols=0)", .0503}};
  for (const auto& [text, expected] : rows) {
    EXPECT_LE(mse(w, code(text, w).w_hat), 1.01 * expected) << text;
  }
}

TEST(Codebook, ImportanceLowersTheLossThatItWeighs) {
  const Matrix<float> w = gaussian(16, 256, 7);
  std::vector<float> weight(256);
  for (size_t j = 0; j < 256; ++j) weight[j] = j % 16 < 2 ? 50.0f : 0.1f;
  Matrix<float> stretched = w;  // the important columns are larger, so a table may serve them
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 256; j += 16) stretched(i, j) *= 3;
  }
  const char* text = "codebook(2, rows=16)";
  const double heeded = mse(stretched, code(text, stretched, weight).w_hat, weight);
  EXPECT_LT(heeded, 0.9 * mse(stretched, code(text, stretched).w_hat, weight));
  EXPECT_EQ(code("codebook(2, rows=16, weighted=false)", stretched, weight).w_hat,
            code(text, stretched).w_hat);
}

TEST(Codebook, FactorsOfFullRankAreExactAndFewerAreOrthonormal) {
  Matrix<double> tables(20, 8);
  Random random(8);
  for (int64_t i = 0; i < 160; ++i) tables.data()[i] = random.gaussian();
  double last = 1e9;
  for (const int64_t rank : {1, 3, 8}) {
    const CodebookFactors factors = codebook_factors(tables, rank);
    double error = 0;
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t c = 0; c < 8; ++c) {
        double product = 0;
        for (int64_t r = 0; r < rank; ++r) {
          product += factors.coefficients(i, r) * factors.basis(r, c);
        }
        error += std::pow(tables(i, c) - product, 2);
      }
    }
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t s = 0; s < rank; ++s) {
        double dot = 0;
        for (int64_t c = 0; c < 8; ++c) dot += factors.basis(r, c) * factors.basis(s, c);
        EXPECT_NEAR(dot, r == s ? 1 : 0, 1e-12);
      }
    }
    EXPECT_LT(error, last);
    last = error;
  }
  EXPECT_LT(last, 1e-20);
}

TEST(Codebook, HalfTheRankCostsLittle) {
  const Matrix<float> w = gaussian(64, 512, 9);
  const double whole = mse(w, code("codebook(3, dim=1, rows=2)", w).w_hat);
  EXPECT_LE(mse(w, code("codebook(3, dim=1, rows=2, svd=4)", w).w_hat), 1.15 * whole);
}

TEST(Codebook, OverheadIsAnEighthOfABitByDefault) {
  for (const char* text : {"codebook(2)", "codebook(2, dim=4)", "codebook(3)", "codebook(2, dim=1)",
                           "codebook(4)", "codebook(3, dim=1)"}) {
    const auto codec = *make_codec(text);
    const CodedMatrix codes = *CodedMatrix::create(*codec, 1024, 1024);
    const double bits = 8.0 * static_cast<double>(codes.n_bytes()) / (1024 * 1024);
    EXPECT_NEAR(bits - codec->claim().bits, .125, .07) << text;
  }
}

TEST(Codebook, MoreGroupsThanCanBeCountedAreDeclined) {
  const auto codec = *make_codec("codebook(3, dim=4, rows=1, cols=4)");
  EXPECT_FALSE(codec->planes(int64_t{1} << 31, int64_t{1} << 31));
  EXPECT_TRUE(codec->planes(1024, 1024));
}

TEST(Codebook, CodesThatDoNotFitAreRefused) {
  for (const char* text :
       {"codebook(1.25)", "codebook(4, dim=4)", "codebook(2, dim=3)", "codebook(2.25, dim=4)",
        "codebook(2, cols=7)", "codebook(2, svd=2)", "codebook(2, dim=1, svd=5)"}) {
    EXPECT_FALSE(make_codec(text)) << text;
  }
}

}  // namespace
}  // namespace quern
