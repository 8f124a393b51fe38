// SPDX-License-Identifier: Apache-2.0
#include "codecs/additive.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "base/parallel.h"
#include "codecs/bit_stream.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

AdditiveBooks random_books(int books, int64_t k, int dim, uint64_t seed) {
  AdditiveBooks result(books, k, dim);
  Random random(seed);
  for (float& value : result.values) value = static_cast<float>(random.gaussian());
  return result;
}

Matrix<float> identity(int dim) {
  Matrix<float> metric(dim, dim);
  for (int t = 0; t < dim; ++t) metric(t, t) = 1;
  return metric;
}

double cost(const AdditiveBooks& books, const uint16_t* codes, const float* x,
            const Matrix<float>& metric) {
  std::vector<double> rest(x, x + books.dim);
  for (int m = 0; m < books.books; ++m) {
    for (int t = 0; t < books.dim; ++t) rest[static_cast<size_t>(t)] -= books.point(m, codes[m])[t];
  }
  double sum = 0;
  for (int64_t t = 0; t < metric.rows(); ++t) {
    for (int64_t u = 0; u < metric.rows(); ++u) {
      sum += rest[static_cast<size_t>(t)] * metric(t, u) * rest[static_cast<size_t>(u)];
    }
  }
  return sum;
}

// The least cost of all sums, by trying them.
double least_cost(const AdditiveBooks& books, const float* x, const Matrix<float>& metric) {
  double least = std::numeric_limits<double>::infinity();
  int64_t sums = 1;
  for (int m = 0; m < books.books; ++m) sums *= books.k;
  for (int64_t i = 0; i < sums; ++i) {
    uint16_t codes[kMaxAdditiveBooks];
    for (int64_t m = 0, left = i; m < books.books; ++m, left /= books.k) {
      codes[m] = static_cast<uint16_t>(left % books.k);
    }
    least = std::min(least, cost(books, codes, x, metric));
  }
  return least;
}

// Also where the metric is narrower than a point, as for the last block of a row.
TEST(Additive, OneBookIsSearchedExactlyInAnyMetric) {
  for (const int64_t k : {16, 64, 2048}) {
    for (const int width : {8, 7, 3, 1}) {
      const AdditiveBooks books = random_books(1, k, 8, 1);
      const Matrix<float> metric = random_metric(width, 2), x = gaussian_matrix(21, 8, 3);
      const AdditiveCells cells(books);
      const AdditiveSearch search(books, cells, metric.view(), 1);
      std::vector<uint16_t> codes(21);
      std::vector<float> found(21);
      search.code(x.data(), 21, AdditiveSearch::Start::kFresh, codes.data(), found.data());
      for (int64_t i = 0; i < 21; ++i) {
        const double least = least_cost(books, x.row(i), metric);
        const double got = cost(books, &codes[static_cast<size_t>(i)], x.row(i), metric);
        EXPECT_LE(got, least * (1 + 1e-4) + 1e-5) << k << ", width " << width;
        EXPECT_NEAR(found[static_cast<size_t>(i)], got, 1e-4 * got + 1e-5);
      }
    }
  }
}

TEST(Additive, ABeamOfAllPointsFindsTheBestSum) {
  const AdditiveBooks books = random_books(2, 16, 8, 4);
  const Matrix<float> metric = random_metric(8, 5);
  const AdditiveCells cells(books);
  const Matrix<float> x = gaussian_matrix(30, 8, 6);
  double wide = 0, narrow = 0;
  for (const int beam : {1, 16}) {
    const AdditiveSearch search(books, cells, metric.view(), beam);
    std::vector<uint16_t> codes(60);
    std::vector<float> found(30);
    search.code(x.data(), 30, AdditiveSearch::Start::kFresh, codes.data(), found.data());
    for (int64_t i = 0; i < 30; ++i) {
      const double got = cost(books, &codes[static_cast<size_t>(2 * i)], x.row(i), metric);
      if (beam == 16) {
        EXPECT_LE(got, least_cost(books, x.row(i), metric) * (1 + 1e-4) + 1e-5);
      }
      (beam == 1 ? narrow : wide) += got;
    }
  }
  EXPECT_LT(wide, 0.99 * narrow);
}

TEST(Additive, CodesThatAreBetterAreKept) {
  const AdditiveBooks books = random_books(3, 16, 8, 7);
  const Matrix<float> metric = random_metric(8, 8);
  const AdditiveCells cells(books);
  const Matrix<float> x = gaussian_matrix(40, 8, 9);
  const AdditiveSearch greedy(books, cells, metric.view(), 1),
      wide(books, cells, metric.view(), 16);
  std::vector<uint16_t> best(120), codes;
  std::vector<float> before(40), after(40);
  wide.code(x.data(), 40, AdditiveSearch::Start::kFresh, best.data(), before.data());
  codes = best;
  greedy.code(x.data(), 40, AdditiveSearch::Start::kKeep, codes.data(), after.data());
  for (size_t i = 0; i < 40; ++i) EXPECT_LE(after[i], before[i]);
  greedy.code(x.data(), 40, AdditiveSearch::Start::kFresh, codes.data(), after.data());
  EXPECT_NE(codes, best) << "or nothing was kept";
}

// Of books of more than 4096 points only the 32 nearest cells are searched.
TEST(Additive, LargeBooksAreSearchedNearly) {
  AdditiveSample sample{gaussian_matrix(1 << 14, 8, 21), std::vector<float>(8, 1)};
  AdditiveBooks books(1, 1 << 14, 8);
  additive_fit(sample, {1, 0}, books);  // the vectors in cells
  const AdditiveCells cells(books);
  const Matrix<float> x = gaussian_matrix(600, 8, 22);
  // Centers tell less in a metric that is long in one direction.
  for (const auto& [metric, loss] : {std::pair(random_metric(8, 23), 1.01), {identity(8), 1.002}}) {
    std::vector<uint16_t> codes(600);
    std::vector<float> all(600), few(600), near(600);
    const MatrixView<const float> g = metric.view();
    const auto search = [&](int64_t probes, std::vector<float>& cost) {
      AdditiveSearch(books, cells, g, 1, probes)
          .code(x.data(), 600, AdditiveSearch::Start::kFresh, codes.data(), cost.data());
      return std::accumulate(cost.begin(), cost.end(), 0.0);
    };
    const double exact = search(cells.cells, all);
    EXPECT_LT(search(4, few), 1.2 * exact);
    EXPECT_LT(search(AdditiveSearch::kProbes, near), loss * exact);
    for (size_t i = 0; i < 600; ++i) {
      EXPECT_GE(few[i], all[i] * (1 - 1e-5f));
      EXPECT_GE(near[i], all[i] * (1 - 1e-5f));
    }
  }
}

TEST(Additive, FastSearchHasTheBitsOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  for (const int dim : {8, 32}) {
    for (const int64_t n_points : {64, 128}) {
      Matrix<float> slopes = gaussian_matrix(16, dim, 24), points(dim, n_points);
      Random random(25);
      for (int64_t i = 0; i < dim * n_points; ++i) {
        points.data()[i] = static_cast<float>(random.below(3));  // many ties
      }
      std::vector<float> offsets(static_cast<size_t>(n_points));
      for (float& offset : offsets) offset = static_cast<float>(random.below(2));
      for (const int64_t n : {1, 3, 4, 7, 8, 15, 16}) {
        std::vector<float> expected(16, -1), got(16, -1);
        expected[2] = got[2] = 1e9f;
        std::vector<int32_t> expected_place(16, -1), place(16, -1);
        const AdditiveScoring scoring{slopes.data(),  n,       dim, points.data(),
                                      offsets.data(), n_points};
        additive_best_ref(scoring, expected.data(), expected_place.data());
        additive_best_avx512(scoring, got.data(), place.data());
        EXPECT_EQ(got, expected) << n;
        EXPECT_EQ(place, expected_place) << n;
      }
    }
  }
  for (const int64_t n : {1, 15, 16, 17, 31, 33, 128}) {
    const Matrix<float> scores = gaussian_matrix(1, n, 26);
    const float least = scores(0, n / 2);
    std::vector<uint16_t> expected, places(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      if (scores(0, i) >= least) expected.push_back(static_cast<uint16_t>(i));
    }
    places.resize(
        static_cast<size_t>(additive_places_avx512(least, scores.data(), n, places.data())));
    EXPECT_EQ(places, expected);
  }
}

AdditiveSample random_sample(int64_t rows, int64_t blocks, uint64_t seed) {
  AdditiveSample sample{gaussian_matrix(rows, blocks * 8, seed), {}};
  Random random(seed);
  for (int64_t j = 0; j < blocks * 8; ++j) {
    sample.weight.push_back(static_cast<float>(random.uniform()) + 0.01f);
  }
  return sample;
}

TEST(Additive, TheLossOfTheFitNeverRises) {
  const AdditiveSample sample = random_sample(60, 12, 10);
  for (const int books : {1, 2, 3}) {
    double last = std::numeric_limits<double>::infinity();
    for (const int iterations : {0, 1, 2, 4, 8, 16}) {
      AdditiveBooks fitted(books, 16, 8);
      const double loss = additive_fit(sample, {4, iterations}, fitted);
      EXPECT_LE(loss, last) << books << " books, " << iterations;
      EXPECT_GT(loss, 0);
      last = loss;
    }
  }
}

// The fixed point of both steps: each point is the weighted mean of what it serves.
TEST(Additive, OneBookIsWeightedKMeans) {
  const AdditiveSample sample = random_sample(50, 8, 11);
  AdditiveBooks books(1, 16, 8);
  additive_fit(sample, {1, 1000}, books);
  const AdditiveCells cells(books);
  Matrix<double> sum(16, 8), mass(16, 8);
  double spread = 0;
  for (int64_t j = 0; j < 8; ++j) {
    Matrix<float> metric(8, 8);
    for (int t = 0; t < 8; ++t) metric(t, t) = sample.weight[static_cast<size_t>(8 * j + t)];
    const AdditiveSearch search(books, cells, metric.view(), 1);
    for (int64_t i = 0; i < 50; ++i) {
      uint16_t code;
      float rest;
      search.code(sample.x.row(i) + 8 * j, 1, AdditiveSearch::Start::kFresh, &code, &rest);
      for (int t = 0; t < 8; ++t) {
        sum(code, t) += static_cast<double>(metric(t, t)) * sample.x(i, 8 * j + t);
        mass(code, t) += metric(t, t);
      }
    }
  }
  for (int64_t c = 0; c < 16; ++c) {
    for (int t = 0; t < 8; ++t) {
      spread += std::pow(books.point(0, c)[t] - sum(c, t) / mass(c, t), 2) / 128;
    }
  }
  // The fit ends when the loss falls by less than a thousandth: few vectors change their point.
  EXPECT_LT(std::sqrt(spread), 0.1);
}

TEST(Additive, AsManyPointsAsVectorsLeaveNoError) {
  const Matrix<float> w = gaussian_matrix(4, 24, 12);  // 12 vectors
  EXPECT_LT(coding_error("additive(1, 4)", w), 1e-6);
  EXPECT_LT(coding_error("additive(2, 4)", w), 1e-6);
}

TEST(Additive, GaussianErrorIsThatOfEightDimensions) {
  // At 1 bit, 256 points; the bound is .25, Lloyd-Max .3634. Zador's formula for eight dimensions
  // with the second moment of E8, .07168, gives .07168 * 2 pi * 1.25^5 / 2^(2 bits): .344 and
  // .0859, a limit for many points that real books stay above at 2 bits.
  const Matrix<float> w = gaussian_matrix(256, 512, 13);
  const double one = coding_error("additive(1, 8)", w);
  EXPECT_LT(one, .325);
  EXPECT_GT(one, .25);
  const double bytes = coding_error("additive(1, 8, points=int8)", w);
  EXPECT_LT(bytes, 1.01 * one);
  const double two = coding_error("additive(2, 8, beam=2, iterations=8)", w);
  EXPECT_LT(two, .105);
  EXPECT_GT(two, .0625);
}

TEST(SlowAdditive, MoreBooksAndWiderBeamsLoseLess) {
  const Matrix<float> w = gaussian_matrix(512, 1024, 14);
  EXPECT_LT(coding_error("additive(2, 8)", w), .0892);
  EXPECT_LT(coding_error("additive(2, 8)", w), coding_error("additive(2, 8, beam=1)", w));
  EXPECT_LT(coding_error("additive(3, 8)", w), .45 * coding_error("additive(2, 8)", w));
  EXPECT_LT(coding_error("additive(4, 8, dim=16)", w), .095);
}

TEST(Additive, ImportanceLowersTheLossThatItWeighs) {
  const Matrix<float> w = gaussian_matrix(64, 128, 15);
  std::vector<float> weight(128);
  for (size_t j = 0; j < 128; ++j) weight[j] = j % 8 < 2 ? 20.0f : 0.1f;
  const auto loss = [&](std::span<const float> told) {
    const auto codec = *make_codec("additive(1, 6)");
    CodedMatrix codes = *CodedMatrix::create(*codec, 64, 128);
    Matrix<float> w_hat(64, 128);
    codec->fit_matrix({w.view(), told}, codes.mutable_view());
    codec->encode(w.view(), 0, 0, codes.mutable_view(), w_hat.view());
    double sum = 0;
    for (int64_t i = 0; i < 64; ++i) {
      for (int64_t j = 0; j < 128; ++j) {
        sum += weight[static_cast<size_t>(j)] * std::pow(w(i, j) - w_hat(i, j), 2);
      }
    }
    return sum;
  };
  EXPECT_LT(loss(weight), 0.8 * loss({}));
}

TEST(Additive, BlocksAreCodedInTheMetricThatIsPassed) {
  const Matrix<float> w = gaussian_matrix(40, 8, 16), metric = random_metric(8, 17);
  const char* text = "additive(2, 4, beam=16)";
  EXPECT_LT(block_error(text, w, metric, true), 0.95 * block_error(text, w, metric, false));
}

TEST(Additive, BitsAreCounted) {
  // codes + books + scales, to the bit
  EXPECT_EQ(coded_bits("additive(2, 8)", 512, 1024),
            2 + (2 * 256 * 8 * 16 + 512 * 16) / (512.0 * 1024));
  EXPECT_EQ(coded_bits("additive(1, 16)", 4096, 4096),
            2 + (65536 * 8 * 16 + 4096 * 16) / (4096.0 * 4096));
  EXPECT_EQ(coded_bits("additive(2, 12, points=int8)", 1024, 1024),
            3 + (2 * 4096 * 8 * 8 + 2 * 16 + 1024 * 16) / (1024.0 * 1024));
}

TEST(Additive, FastDecoderHasTheBitsOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(18);
  for (const int dim : {8, 16, 32}) {
    for (const int books : {1, 2, 5}) {
      for (const bool is_int8 : {false, true}) {
        for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100}) {
          // Exact allocations, so that a sanitizer sees any read past the books.
          std::vector<std::byte> points(static_cast<size_t>(books * 32 * dim * (is_int8 ? 1 : 2)));
          std::vector<uint16_t> codes(static_cast<size_t>((n + dim - 1) / dim * books));
          std::vector<float> units(static_cast<size_t>(books));
          for (size_t i = 0; i < points.size(); ++i) {
            points[i] = static_cast<std::byte>(random.next() & (i % 2 != 0 ? 0xbb : 0xff));
          }
          for (uint16_t& code : codes) code = static_cast<uint16_t>(random.below(32));
          for (float& unit : units) unit = static_cast<float>(random.uniform());
          const AdditiveRow row{points.data(), is_int8 ? units.data() : nullptr,
                                books,         32,
                                dim,           0.3f,
                                codes.data(),  n};
          std::vector<float> expected(static_cast<size_t>(n)), got(expected);
          additive_decode_ref(row, expected.data());
          additive_decode_avx512(row, got.data());
          EXPECT_EQ(got, expected) << books << " books of dim " << dim << ", n " << n;
        }
      }
    }
  }
}

TEST(Additive, FitAndCodesDoNotDependOnThreads) {
  const Matrix<float> w = gaussian_matrix(70, 100, 19);
  const auto codec = *make_codec("additive(2, 5)");
  set_thread_count(1);
  const CodedMatrix one = code_matrix(*codec, w);
  set_thread_count(3);
  const CodedMatrix three = code_matrix(*codec, w);
  set_thread_count(0);
  for (size_t p = 0; p < one.specs().size(); ++p) {
    EXPECT_TRUE(std::equal(one.plane(p).begin(), one.plane(p).end(), three.plane(p).begin()));
  }
}

TEST(BitStream, CodesOfUpToSixteenBitsComeBack) {
  Random random(20);
  for (int bits = 1; bits <= 16; ++bits) {
    std::vector<uint8_t> stream(static_cast<size_t>(stream_bytes(50, bits)), 0xaa);
    std::vector<unsigned> codes;
    for (int64_t i = 0; i < 50; ++i) {
      codes.push_back(static_cast<unsigned>(random.below(1u << bits)));
      put_code(stream.data(), i, bits, codes.back());
    }
    put_code(stream.data(), 17, bits, 0);
    codes[17] = 0;
    for (int64_t i = 0; i < 50; ++i) {
      EXPECT_EQ(get_code(stream.data(), i, bits), codes[static_cast<size_t>(i)]) << bits;
    }
  }
}

TEST(Additive, WrongCallsAreRefused) {
  for (const char* text : {"additive(2)", "additive(0, 8)", "additive(2, 3)", "additive(2, 17)",
                           "additive(2, 8, dim=12)", "additive(9, 8)"}) {
    EXPECT_FALSE(make_codec(text)) << text;
  }
}

}  // namespace
}  // namespace quern
