// SPDX-License-Identifier: Apache-2.0
#include "codecs/e8p.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/float_types.h"
#include "codecs/e8p_panels.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

const Isa kIsas[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512};

using Point = std::array<int8_t, 8>;

Point point_of(unsigned code) {
  Point p;
  e8p_point(e8p_tables(), code, p.data());
  return p;
}

double distance(const float* y, const int8_t* quarters) {
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += std::pow(y[i] - 0.25 * quarters[i], 2);
  return sum;
}

TEST(E8p, RowsAreThePublishedOnes) {
  const E8pTables& t = e8p_tables();
  std::map<int, int> by_norm;
  std::set<std::vector<int>> distinct;
  int n_odd = 0;
  for (int r = 0; r < 256; ++r) {
    std::vector<int> row;
    int sum = 0;
    for (int i = 0; i < 8; ++i) {
      row.push_back(std::abs(t.points[r][i]));
      EXPECT_TRUE(row.back() == 2 || row.back() == 6 || row.back() == 10);
      EXPECT_EQ(t.points[r][i] < 0, i == 7 && t.is_odd[r] != 0);
      EXPECT_EQ(t.rows[i][r], 0.25f * static_cast<float>(row.back()));
      sum += row.back() / 2;  // doubled entries
    }
    EXPECT_EQ(t.is_odd[r], sum / 2 % 2);
    n_odd += t.is_odd[r];
    ++by_norm[static_cast<int>(t.norms[r])];
    distinct.insert(row);
    if (r > 0 && r < 227) {
      EXPECT_TRUE(std::lexicographical_compare(t.points[r - 1], t.points[r - 1] + 7, t.points[r],
                                               t.points[r] + 7) ||
                  std::equal(t.points[r - 1], t.points[r - 1] + 7, t.points[r]));
    }
  }
  EXPECT_EQ(by_norm, (std::map<int, int>{{2, 1}, {4, 8}, {6, 28}, {8, 64}, {10, 126}, {12, 29}}));
  EXPECT_EQ(distinct.size(), 256u);
  EXPECT_EQ(n_odd, 149);
}

TEST(E8p, CodesAre65536DistinctPointsOfTheShiftedLattice) {
  std::set<Point> points;
  double norms = 0, least = 1e9, most = 0;
  for (unsigned code = 0; code < 65536; ++code) {
    const Point p = point_of(code);
    points.insert(p);
    int norm = 0, sum = 0;
    const int shift = __builtin_parity(code & 255u) != 0 ? -1 : 1;
    for (const int8_t q : p) {
      ASSERT_TRUE(q % 2 != 0 && std::abs(q) <= 11);
      ASSERT_EQ((q - shift) % 4, (q - shift) % 4 < 0 ? -2 : 2) << "a half and a whole number";
      norm += q * q;
      sum += (q - shift) / 2;  // doubled
    }
    ASSERT_EQ(sum % 4, 0) << "sum of the unshifted point is even";
    norms += norm / 16.0 / 65536;
    least = std::min(least, norm / 16.0);
    most = std::max(most, norm / 16.0);
  }
  EXPECT_EQ(points.size(), 65536u);
  EXPECT_EQ(least, 0.5);
  EXPECT_EQ(most, 16.5);
  EXPECT_NEAR(norms, 9.5703, 5e-5);
}

TEST(E8p, SomeCodesDecodeForEverToThese) {
  EXPECT_EQ(point_of(0x0000), (Point{3, 3, 3, 3, 3, 3, 3, 3}));
  EXPECT_EQ(point_of(0x0001), (Point{1, 1, 1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(point_of(0x0003), (Point{-1, -1, 3, 3, 3, 3, 3, 3}));
  EXPECT_EQ(point_of(0x0080), (Point{-3, 1, 1, 1, 1, 1, 1, -3}));
  EXPECT_EQ(point_of(0x0180), (Point{-3, 1, 1, 1, 1, 1, 1, 5}));
  EXPECT_EQ(point_of(0x0100), (Point{3, 3, 3, 3, 3, 3, 3, -5}));
}

TEST(E8p, ThePointsOfE8AreShortAndDistinct) {
  const E8pTables& t = e8p_tables();
  std::map<int, int> by_norm;
  std::set<Point> distinct;
  for (int r = 0; r < 256; ++r) {
    Point p;
    std::copy_n(t.e8[r], 8, p.begin());
    distinct.insert(p);
    ++by_norm[static_cast<int>(t.e8_norms[r])];
    int sum = 0;
    for (const int8_t q : p) {
      EXPECT_EQ(((q - p[0]) % 4), 0) << "all whole or all half";
      sum += q;
    }
    EXPECT_EQ(sum % 8, 0) << "an even sum";
  }
  EXPECT_EQ(distinct.size(), 256u);
  EXPECT_EQ(by_norm, (std::map<int, int>{{0, 1}, {2, 240}, {4, 15}}));
}

TEST(E8p, EveryPointIsNearestToItself) {
  std::vector<float> y(65536 * 8);
  for (unsigned code = 0; code < 65536; ++code) {
    const Point p = point_of(code);
    for (size_t i = 0; i < 8; ++i) y[8 * code + i] = 0.25f * static_cast<float>(p[i]);
  }
  std::vector<uint16_t> codes(65536);
  e8p_kernels(best_isa()).nearest(e8p_tables(), y.data(), 65536, codes.data());
  for (unsigned code = 0; code < 65536; ++code) ASSERT_EQ(codes[code], code);
}

TEST(E8p, SearchFindsTheNearestOfAllPoints) {
  Random random(1);
  const E8pTables& t = e8p_tables();
  std::vector<Point> points;
  for (unsigned code = 0; code < 65536; ++code) points.push_back(point_of(code));
  for (int trial = 0; trial < 300; ++trial) {
    float y[8];
    for (float& v : y) v = static_cast<float>(random.gaussian() * (trial % 3 == 0 ? 3 : 1));
    double least = 1e9, least_e8 = 1e9;
    for (const Point& p : points) least = std::min(least, distance(y, p.data()));
    for (const auto& p : t.e8) least_e8 = std::min(least_e8, distance(y, p));
    uint16_t code;
    uint8_t code_e8;
    e8p_kernels(best_isa()).nearest(t, y, 1, &code);
    e8p_kernels(best_isa()).nearest_e8(t, y, 1, &code_e8);
    // Ties within the rounding of some twenty float operations on numbers below 100.
    EXPECT_LE(distance(y, points[code].data()), least + 1e-4);
    EXPECT_LE(distance(y, t.e8[code_e8]), least_e8 + 1e-4);
  }
}

TEST(E8p, EveryInstructionSetFindsTheSameCodes) {
  constexpr int64_t kVectors = 2000;
  Random random(2);
  std::vector<float> y(kVectors * 8);
  for (float& v : y) v = static_cast<float>(random.gaussian());
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float special[] = {0, -0.0f, kInfinity, -kInfinity, std::nanf(""), 1e30f, 1e-30f, 0.25f};
  for (size_t i = 0; i < 800; ++i) y[random.below(1600)] = special[random.below(8)];
  for (size_t i = 1600; i < 3200; ++i) y[i] = 0.25f * std::round(4 * y[i]);  // ties
  std::vector<uint16_t> expected(kVectors), got(kVectors);
  std::vector<uint8_t> expected_e8(kVectors), got_e8(kVectors);
  e8p_kernels_ref.nearest(e8p_tables(), y.data(), kVectors, expected.data());
  e8p_kernels_ref.nearest_e8(e8p_tables(), y.data(), kVectors, expected_e8.data());
  for (const Isa isa : kIsas) {
    if (!host_has(isa)) continue;
    e8p_kernels(isa).nearest(e8p_tables(), y.data(), kVectors, got.data());
    e8p_kernels(isa).nearest_e8(e8p_tables(), y.data(), kVectors, got_e8.data());
    EXPECT_EQ(got, expected) << isa_name(isa);
    EXPECT_EQ(got_e8, expected_e8) << isa_name(isa);
  }
}

TEST(E8p, EveryFastDecoderHasTheBitsOfTheReference) {
  Random random(3);
  for (const int64_t n :
       {1, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 100, 128, 200, 256, 257, 512, 777}) {
    for (const E8pResidual kind : {E8pResidual::kNone, E8pResidual::kE8, E8pResidual::kE8p}) {
      // Exact allocations, so that a sanitizer sees any read past a row.
      std::vector<uint8_t> codes(static_cast<size_t>((n + 7) / 8 * 2));
      std::vector<uint8_t> residual(codes.size() / (kind == E8pResidual::kE8 ? 2 : 1));
      for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
      for (uint8_t& byte : residual) byte = static_cast<uint8_t>(random.next());
      const E8pRow row{codes.data(), residual.data(), n, 0.37f, 1 / 3.45f, kind};
      std::vector<float> expected(static_cast<size_t>(n)), got(expected);
      e8p_kernels_ref.decode_row(e8p_tables(), row, expected.data());
      for (const Isa isa : kIsas) {
        if (!host_has(isa)) continue;
        e8p_kernels(isa).decode_row(e8p_tables(), row, got.data());
        EXPECT_EQ(got, expected) << isa_name(isa) << ", n " << n;
      }
    }
  }
}

TEST(E8p, FastLinesHaveTheBytesOfTheReference) {
  Random random(11);
  const auto bytes_of = [&](int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.next());
    return bytes;
  };
  E8pPanelTables tables[2];
  for (uint8_t& byte : std::span(reinterpret_cast<uint8_t*>(tables), sizeof(tables))) {
    byte = static_cast<uint8_t>(random.next());
  }
  for (const int64_t n : {1, 2, 5}) {
    for (const E8pResidual kind : {E8pResidual::kNone, E8pResidual::kE8, E8pResidual::kE8p}) {
      const auto codes = bytes_of(n * e8p_n_lines(kind) * kE8pLine);  // exact, for sanitizers
      const E8pLines lines{&tables[0], kind == E8pResidual::kNone ? nullptr : &tables[1], kind,
                           codes.data(), n};
      std::vector<uint8_t> want(static_cast<size_t>(512 * n)), got = want;
      e8p_lines_ref(lines, want.data());
      for (const auto& [isa, write] :
           {std::pair{Isa::kAvx2, &e8p_lines_avx2}, {Isa::kAvx512, &e8p_lines_avx512}}) {
        if (!host_has(isa)) continue;
        write(lines, got.data());
        EXPECT_EQ(got, want) << isa_name(isa) << ", " << n << " lines";
      }
    }
  }
}

// All codes: levels of the form by the definition of the points, and their values are the codec's.
TEST(E8p, PanelsHaveTheLevelsOfTheirPoints) {
  constexpr int64_t kRows = 256, kCols = 2048, kBlocks = kCols / 8;
  for (int bits = 2; bits <= 4; ++bits) {
    const auto codec = *make_codec("e8p(" + std::to_string(bits) + ")");
    CodedMatrix codes = *CodedMatrix::create(*codec, kRows, kCols);
    const MutableCodes planes = codes.mutable_view();
    std::vector<uint16_t> points(kRows * kBlocks), residual(points);
    for (size_t i = 0; i < points.size(); ++i) {
      points[i] = static_cast<uint16_t>(i);
      residual[i] = static_cast<uint16_t>(40503 * i);  // odd: all of them
      std::memcpy(planes.planes[0] + 2 * i, &points[i], 2);
      if (bits == 3) planes.planes[2][i] = static_cast<std::byte>(residual[i]);
      if (bits == 4) std::memcpy(planes.planes[2] + 2 * i, &residual[i], 2);
    }
    for (int64_t i = 0; i < kRows; ++i) {
      const uint16_t half = float_to_f16(0.25f + 0.125f * static_cast<float>(i));
      std::memcpy(planes.planes[1] + 2 * i, &half, 2);
    }
    const auto form = codec->runtime_form(codes.view(), Reading::kPanels);
    ASSERT_NE(form, nullptr);
    EXPECT_EQ(form->codes.n_bytes(), codes.n_bytes());
    EXPECT_EQ(decode_matrix(*form->decoder, form->codes), decode_matrix(*codec, codes));
    const int64_t group = form->decoder->panel_tile(kCols).group;
    std::vector<uint8_t> levels(kCols * kPanelRows);
    std::vector<float> scales(static_cast<size_t>(kCols / group * kPanelRows));
    for (int64_t row = 0; row < kRows; row += kPanelRows) {
      form->decoder->decode_panels(form->codes.view(), row, kPanelRows, 0, kCols,
                                   {levels.data(), scales.data(), 0, 0});
      for (int64_t i = 0; i < kCols * kPanelRows; ++i) {
        const int64_t r = i / 4 % 16, j = i / 64 * 4 + i % 4;
        const auto block = static_cast<size_t>((row + r) * kBlocks + j / 8);
        int8_t point[8], rest[8];
        e8p_point(e8p_tables(), points[block], point);
        int level = kPanelZero + (bits == 2 ? 1 : 8) * point[j % 8];
        if (bits == 3) {
          const int quarters = e8p_tables().e8[residual[block] & 255][j % 8];
          level += static_cast<int>(std::nearbyint(static_cast<float>(8 * quarters) / 2.04f));
        }
        if (bits == 4) {
          e8p_point(e8p_tables(), residual[block], rest);
          level += static_cast<int>(std::nearbyint(static_cast<float>(8 * rest[j % 8]) / 3.45f));
        }
        ASSERT_EQ(levels[static_cast<size_t>(i)], level & 255) << bits << " bits, " << i;
        ASSERT_EQ(scales[static_cast<size_t>(j / group * 16 + r)],
                  (0.25f + 0.125f * static_cast<float>(row + r)) / (bits == 2 ? 4 : 32));
      }
    }
  }
}

TEST(E8p, GaussianErrorIsThatOfTheLattice) {
  const Matrix<float> w = gaussian_matrix(64, 4096, 4);
  EXPECT_NEAR(coding_error("e8p", w), 0.0913, 0.0009);
  EXPECT_NEAR(coding_error("e8p(3)", w), 0.0295, 0.0003);
  EXPECT_NEAR(coding_error("e8p(4, spread=1)", w), 0.0091, 0.0001);
  EXPECT_LT(coding_error("e8p(4)", w), 0.0088);
  EXPECT_NEAR(coding_error("e8p(2, spread=0.9)", w), 0.099, 0.001);
}

TEST(E8p, RowsOfAnyNormAreCodedAlike) {
  Matrix<float> w = gaussian_matrix(8, 512, 5);
  for (int64_t j = 0; j < w.cols(); ++j) {
    for (int64_t i = 1; i < w.rows(); ++i) w(i, j) = std::ldexp(w(0, j), static_cast<int>(2 * i));
  }
  const auto codec = *make_codec("e8p(3)");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t j = 0; j < w.cols(); ++j) {
    for (int64_t i = 1; i < w.rows(); ++i) {
      EXPECT_EQ(w_hat(i, j), std::ldexp(w_hat(0, j), static_cast<int>(2 * i)));
    }
  }
}

TEST(E8p, FeedbackWidensTheScale) {
  const auto codec = *make_codec("e8p");
  Matrix<float> w(1, 64);
  for (int64_t j = 0; j < 64; ++j) w(0, j) = j % 2 == 0 ? 1.0f : -1.0f;
  for (const float feedback : {0.0f, 2.0f, 1e9f}) {
    CodedMatrix codes = *CodedMatrix::create(*codec, 1, 64);
    codec->fit_matrix({w.view(), {}, feedback}, codes.mutable_view());
    uint16_t half;
    std::memcpy(&half, codes.plane(1).data(), 2);
    const double added = std::min(0.5, feedback * 0.0913);
    EXPECT_NEAR(f16_to_float(half), std::sqrt(1 / (1 - added)) / 1.03, 0x1p-11) << feedback;
  }
}

}  // namespace
}  // namespace quern
