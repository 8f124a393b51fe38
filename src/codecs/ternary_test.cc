// SPDX-License-Identifier: Apache-2.0
#include "codecs/ternary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(Ternary, FastDecodersHaveTheBitsOfTheReference) {
  Random random(1);
  for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 39, 40, 41, 64, 79, 80, 81, 257}) {
    for (const int64_t group : {int64_t{16}, int64_t{48}, n}) {
      std::vector<uint8_t> codes(static_cast<size_t>((n + 4) / 5));  // exact, for sanitizers
      std::vector<float> scales(static_cast<size_t>((n + group - 1) / group));
      for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
      for (float& scale : scales) scale = static_cast<float>(random.gaussian());
      const TritRow row{codes.data(), scales.data(), n, group};
      std::vector<float> expected(static_cast<size_t>(n)), got(expected);
      trits_decode_row_ref(row, expected.data());
      if (host_has(Isa::kAvx2)) {
        trits_decode_row_avx2(row, got.data());
        EXPECT_EQ(got, expected) << "AVX2, n " << n << ", group " << group;
      }
      if (host_has(Isa::kAvx512)) {
        trits_decode_row_avx512(row, got.data());
        EXPECT_EQ(got, expected) << "AVX-512, n " << n << ", group " << group;
      }
    }
  }
}

// All 243 bytes, written column by column in an order that is not that of the columns.
TEST(Ternary, FiveValuesAreFoundAgainInTheirByte) {
  const auto codec = *make_codec("ternary(0)");
  const int order[5] = {3, 0, 4, 1, 2};
  std::map<std::byte, int> seen;
  for (int number = 0; number < 243; ++number) {
    float w[5] = {}, w_hat[5], decoded[5];
    for (int k = 0, rest = number; k < 5; ++k, rest /= 3) w[k] = static_cast<float>(rest % 3 - 1);
    CodedMatrix codes = *CodedMatrix::create(*codec, 1, 5);
    codec->fit({w, 1, 5}, {}, 0, 0, codes.mutable_view());
    for (const int k : order) {
      codec->encode({w + k, 1, 1}, 0, k, codes.mutable_view(), {w_hat + k, 1, 1});
    }
    codec->decode(codes.view(), 0, 1, decoded);
    if (codes.plane(0)[0] == std::byte{0xcc}) {
      EXPECT_EQ(std::vector<float>(w, w + 5), (std::vector<float>{1, 0, -1, 0, 0}));
    }
    for (int k = 0; k < 5; ++k) {
      EXPECT_EQ(w_hat[k], w[k]);
      EXPECT_EQ(decoded[k], w[k]);
    }
    ++seen[codes.plane(0)[0]];
  }
  EXPECT_EQ(seen.size(), 243u) << "no byte means two things";
  EXPECT_EQ(seen[std::byte{0xcc}], 1) << "1 0 -1 0 0, the example of the format's page";
}

TEST(Ternary, BothPackingsHoldTheSame) {
  const Matrix<float> w = gaussian_matrix(9, 257, 2);
  for (const char* rest : {"", ", scale=absmean", ", scope=matrix"}) {
    const std::string text = std::string("ternary(32") + rest;
    const auto a = *make_codec(text + ")"), b = *make_codec(text + ", packing=planes)");
    EXPECT_EQ(decode_matrix(*a, code_matrix(*a, w)), decode_matrix(*b, code_matrix(*b, w)));
  }
}

TEST(Ternary, AbsmeanIsBitNets) {
  const Matrix<float> w = gaussian_matrix(64, 512, 3);
  const auto codec = *make_codec("ternary(scope=matrix, scale=absmean)");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  double mean = 0;
  for (int64_t i = 0; i < 64 * 512; ++i) mean += std::abs(w.data()[i]);
  mean /= 64 * 512;
  int64_t n_zero = 0;
  for (int64_t i = 0; i < 64 * 512; ++i) {
    const double code = std::clamp(std::nearbyint(w.data()[i] / mean), -1.0, 1.0);
    EXPECT_NEAR(w_hat.data()[i], code * mean, 1e-6);
    n_zero += w_hat.data()[i] == 0 ? 1 : 0;
  }
  EXPECT_NEAR(static_cast<double>(n_zero) / (64 * 512), 0.310, 0.01);
  EXPECT_NEAR(mean_square_error(w, w_hat), 0.263, 0.004);
}

TEST(Ternary, TheScaleOfLeastErrorIsTheBestOfAll) {
  // Of a long row it reaches the optimum for a Gaussian; the bins of a matrix cost nothing. Squared
  // errors spread by less than .3, and there are 512 * 512 of them.
  const Matrix<float> w = gaussian_matrix(64, 4096, 4);
  EXPECT_NEAR(coding_error("ternary(0)", w), 0.1902, 3 * 0.3 / 512);
  EXPECT_NEAR(coding_error("ternary(scope=matrix)", w), 0.1902, 3 * 0.3 / 512);
  EXPECT_LT(coding_error("ternary(32)", w), 0.19);
}

TEST(Ternary, ImportanceLowersTheLossThatItWeighs) {
  const Matrix<float> w = gaussian_matrix(16, 128, 5);
  std::vector<float> weight(128, 0.1f);
  for (size_t j = 0; j < 128; j += 8) weight[j] = 50;
  EXPECT_LT(weighted_error("ternary", w, weight, true),
            0.95 * weighted_error("ternary", w, weight, false));
  EXPECT_EQ(weighted_error("ternary(weighted=false)", w, weight, true),
            weighted_error("ternary", w, weight, false));
}

TEST(Ternary, PlanesOfOthersMayFollowItsOwn) {
  const Matrix<float> w = gaussian_matrix(16, 128, 6);
  for (const char* text : {"ternary(scope=matrix)", "ternary(scope=matrix, packing=planes)"}) {
    EXPECT_LT(coding_error(std::string("outliers(") + text + ", percent=1)", w),
              coding_error(text, w));
  }
}

TEST(Ternary, BitsAreThoseOfThePage) {
  EXPECT_EQ(coded_bits("ternary(0)", 16, 1280), 1.6 + 16.0 / 1280);
  EXPECT_EQ(coded_bits("ternary(128)", 16, 1280), 1.725);
  EXPECT_EQ(coded_bits("ternary(128, packing=planes)", 16, 1280), 2.125);
  EXPECT_EQ(coded_bits("ternary(scope=matrix)", 16, 1280), 1.6 + 32.0 / (16 * 1280));
}

}  // namespace
}  // namespace quern
