// SPDX-License-Identifier: Apache-2.0
#include "codecs/int.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/float_types.h"
#include "base/random.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(Int, EveryFastDecoderHasTheBitsOfTheReference) {
  Random random(1);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 129, 300}) {
      for (const int64_t group : {int64_t{16}, int64_t{48}, int64_t{64}, n}) {
        if (group % 16 != 0 && group < n) continue;
        // Exact allocations, so that a sanitizer sees any read past a row.
        std::vector<uint8_t> codes(static_cast<size_t>((n * bits + 7) / 8));
        std::vector<uint8_t> scales(static_cast<size_t>(2 * ((n + group - 1) / group)));
        std::vector<uint8_t> half_zeros(scales), zeros(scales.size() / 2);
        for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
        for (uint8_t& byte : zeros) byte = static_cast<uint8_t>(random.next());
        for (size_t g = 0; g < zeros.size(); ++g) {
          const uint16_t half = float_to_f16(static_cast<float>(random.gaussian()));
          const uint16_t zero = float_to_f16(static_cast<float>(8 + 4 * random.gaussian()));
          std::memcpy(scales.data() + 2 * g, &half, 2);
          std::memcpy(half_zeros.data() + 2 * g, &zero, 2);
        }
        for (const char form : {'m', 'w', 'h'}) {  // zeros in the middle, whole, half precision
          const IntRow row{codes.data(),
                           scales.data(),
                           form == 'w' ? zeros.data() : nullptr,
                           form == 'h' ? half_zeros.data() : nullptr,
                           n,
                           group,
                           bits};
          std::vector<float> expected(static_cast<size_t>(n)), got(expected);
          int_decode_row_ref(row, expected.data());
          if (host_has(Isa::kAvx512)) {
            int_decode_row_avx512(row, got.data());
            EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
          }
          if (host_has(Isa::kAvx2)) {
            int_decode_row_avx2(row, got.data());
            EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
          }
        }
      }
    }
  }
}

TEST(Int, NumbersOnTheGridComeBackExactly) {
  Matrix<float> w(4, 64);
  Random random(3);
  for (int64_t i = 0; i < 4 * 64; ++i) {
    w.data()[i] = 0.125f * (static_cast<float>(random.below(15)) - 7);
  }
  for (int64_t i = 0; i < 4; ++i) w(i, 5) = 0.125f * 7;  // the end of the grid is met
  EXPECT_EQ(coding_error("int(4, group=64)", w), 0);
}

TEST(Int, ErrorFallsWithEveryBitAndWithSmallerGroups) {
  const Matrix<float> w = gaussian_matrix(32, 1024, 11);
  double last = 1e9;
  for (int bits = 2; bits <= 8; ++bits) {
    const double error = coding_error(fmt::format("int({}, group=64)", bits), w);
    EXPECT_LT(error, last / 2) << bits;
    last = error;
  }
  EXPECT_LT(coding_error("int(4, group=32)", w), coding_error("int(4, group=128)", w));
}

TEST(Int, ClipSearchNeverLosesByItsOwnMeasure) {
  const Matrix<float> w = gaussian_matrix(32, 512, 11);
  for (const int bits : {2, 3, 4}) {
    EXPECT_LE(coding_error(fmt::format("int({}, clip=search, norm=2)", bits), w),
              coding_error(fmt::format("int({})", bits), w));
  }
}

TEST(Int, GridsDifferAsNamed) {
  // One row whose largest magnitude is 1: scales follow from the definition.
  Matrix<float> w(1, 2);
  w(0, 0) = -1;
  w(0, 1) = 0.4f;
  const std::pair<const char*, double> cases[] = {{"int(4, group=0)", 1.0 / 7},
                                                  {"int(4, group=0, grid=half)", 1.0 / 7.5},
                                                  {"int(4, group=0, grid=signed)", 1.0 / 8},
                                                  {"int(4, group=0, sym=false)", 1.4 / 15}};
  for (const auto& [text, scale] : cases) {
    const auto codec = *make_codec(text);
    CodedMatrix codes = *CodedMatrix::create(*codec, 1, 2);
    codec->fit(w.view(), {}, 0, 0, codes.mutable_view());
    uint16_t half;
    std::memcpy(&half, codes.plane(1).data(), 2);
    EXPECT_EQ(half, float_to_f16(static_cast<float>(scale))) << text;
  }
}

TEST(Int, AsymmetricGroupsReachBothEnds) {
  Matrix<float> w(1, 16);
  for (int64_t j = 0; j < 16; ++j) w(0, j) = 0.25f * static_cast<float>(j - 5);
  EXPECT_EQ(coding_error("int(4, sym=false)", w), 0) << "-5 to 10 quarters, zero at 5";
  for (int64_t j = 0; j < 16; ++j) w(0, j) = 3 + static_cast<float>(j) / 16;
  const auto codec = *make_codec("int(4, sym=false)");
  const CodedMatrix codes = code_matrix(*codec, w);
  EXPECT_EQ(std::to_integer<int>(codes.plane(2)[0]), 0) << "zero itself stays in the range";
  EXPECT_LT(coding_error("int(4, sym=false)", w), std::pow(4.0 / 15, 2) / 4);
}

TEST(Int, HqqZerosLowerTheErrorOfRounding) {
  const Matrix<float> gaussian = gaussian_matrix(256, 1024, 12);
  Matrix<float> heavy = gaussian;  // cubes: kurtosis 46
  for (int64_t i = 0; i < 256 * 1024; ++i) {
    heavy.data()[i] *= gaussian.data()[i] * gaussian.data()[i];
  }
  for (const int bits : {2, 3, 4}) {
    const std::string base = fmt::format("int({}, group=64, sym=false", bits);
    const double whole = coding_error(base + ")", gaussian);
    const double hqq = coding_error(base + ", zeros=hqq)", gaussian);
    EXPECT_LT(hqq, 0.91 * whole) << bits << ": a twelfth below the best of fractional zeros";
    EXPECT_LT(coding_error(base + ", zeros=hqq)", heavy), coding_error(base + ")", heavy)) << bits;
  }
}

double sum_of_magnitudes(const Codec& codec, const Matrix<float>& w) {
  const Matrix<float> w_hat = decode_matrix(codec, code_matrix(codec, w));
  double sum = 0;
  for (int64_t i = 0; i < w.rows() * w.cols(); ++i) {
    sum += std::abs(double{w.data()[i]} - w_hat.data()[i]);
  }
  return sum;
}

TEST(Int, HqqNeverLosesByItsOwnMeasure) {
  const auto whole = *make_codec("int(3, group=0, sym=false)");
  const auto hqq = *make_codec("int(3, group=0, sym=false, zeros=hqq)");
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Matrix<float> w = gaussian_matrix(1, 1 + static_cast<int64_t>(seed), seed);
    EXPECT_LE(sum_of_magnitudes(*hqq, w), sum_of_magnitudes(*whole, w) * (1 + 1e-6));
  }
}

TEST(Int, HqqTreatsBothSignsAlike) {
  const Matrix<float> w = gaussian_matrix(64, 1024, 13);
  Matrix<float> negated = w;
  for (int64_t i = 0; i < 64 * 1024; ++i) negated.data()[i] = -w.data()[i];
  const char* text = "int(3, group=64, sym=false, zeros=hqq)";
  EXPECT_NEAR(coding_error(text, negated) / coding_error(text, w), 1, 1e-3);
  EXPECT_FALSE(make_codec("int(3, zeros=hqq)")) << "symmetric";
}

TEST(Int, ImportanceOfColumnsMovesTheFit) {
  const Matrix<float> w = gaussian_matrix(64, 64, 14);
  std::vector<float> weight(64, 0.01f);
  for (size_t j = 0; j < 16; ++j) weight[j] = 10;
  for (const char* text : {"int(3, group=64, clip=search)", "int(3, sym=false, clip=search)",
                           "int(2, group=64, sym=false, zeros=hqq)"}) {
    EXPECT_LT(weighted_error(text, w, weight, true), 0.95 * weighted_error(text, w, weight, false))
        << text;
  }
}

}  // namespace
}  // namespace quern
