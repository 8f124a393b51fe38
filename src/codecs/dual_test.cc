// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "base/float_types.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

float half(const CodedMatrix& codes, int64_t i) {
  uint16_t bits;
  std::memcpy(&bits, codes.plane(2).data() + 2 * i, 2);
  return f16_to_float(bits);
}

// DB-LLM's own two thresholds, and the rounding that they stand for.
TEST(Dual, EqualStepsAreDbLlmsInitialisation) {
  const Matrix<float> w = gaussian_matrix(16, 256, 1);
  const auto codec = *make_codec("dual(64, scales=equal, flip=false)");
  const CodedMatrix codes = code_matrix(*codec, w);
  const Matrix<float> w_hat = decode_matrix(*codec, codes);
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 256; ++j) {
      const float a1 = half(codes, 2 * (4 * i + j / 64)),
                  a2 = half(codes, 2 * (4 * i + j / 64) + 1);
      ASSERT_EQ(a1, -2 * a2);
      const float b1 = w(i, j) - (a1 + a2) / 2 >= 0 ? 1 : 0;
      const float b2 = -(w(i, j) - a1 * b1 - a2 / 2) >= 0 ? 1 : 0;
      EXPECT_EQ(w_hat(i, j), a1 * b1 + a2 * b2);
      EXPECT_EQ(w_hat(i, j), -a2 * std::clamp(std::nearbyint(w(i, j) / -a2), -1.0f, 2.0f));
    }
  }
}

TEST(Dual, ErrorsOnAGaussian) {
  const Matrix<float> w = gaussian_matrix(64, 4096, 2);
  const double equal = coding_error("dual(0, scales=equal, flip=false)", w);
  const double free = coding_error("dual(0, flip=false)", w);
  EXPECT_NEAR(equal, 0.149, 0.002);
  EXPECT_NEAR(free, 0.1375, 0.002);
  EXPECT_LT(coding_error("dual(0)", w), free) << "either tail may be the longer one";
}

TEST(Dual, AtMostFourLevelsOfAGroup) {
  const Matrix<float> w = gaussian_matrix(8, 64, 3);
  const auto codec = *make_codec("dual");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t i = 0; i < 8; ++i) {
    const std::set<float> levels(w_hat.row(i), w_hat.row(i) + 64);
    EXPECT_LE(levels.size(), 4u);
  }
}

TEST(Dual, AFlippedGroupIsTheMirrorImage) {
  Matrix<float> w(2, 64);
  Random random(4);
  for (int64_t j = 0; j < 64; ++j) {
    w(0, j) = static_cast<float>(std::exp(random.gaussian()) - 1);  // a long tail of plus
    w(1, j) = -w(0, j);
  }
  const auto codec = *make_codec("dual");
  const Matrix<float> w_hat = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t j = 0; j < 64; ++j) EXPECT_EQ(w_hat(1, j), -w_hat(0, j));
  EXPECT_GT(coding_error("dual(flip=false)", w), 1.2 * coding_error("dual", w));
}

TEST(Dual, LevelsOfItsOwnAreExact) {
  const auto codec = *make_codec("dual(16)");
  Matrix<float> w(1, 16);
  for (int64_t j = 0; j < 16; ++j) w(0, j) = std::vector<float>{0, 3, -1, 2}[j % 4];
  EXPECT_EQ(decode_matrix(*codec, code_matrix(*codec, w)), w);
}

TEST(Dual, ImportanceLowersTheLossThatItWeighs) {
  const Matrix<float> w = gaussian_matrix(16, 64, 5);
  std::vector<float> weight(64, 0.1f);
  for (size_t j = 0; j < 64; j += 8) weight[j] = 50;
  EXPECT_LT(weighted_error("dual", w, weight, true),
            0.7 * weighted_error("dual", w, weight, false));
  EXPECT_EQ(weighted_error("dual(weighted=false)", w, weight, true),
            weighted_error("dual", w, weight, false));
}

TEST(Dual, BitsAreThoseOfThePage) {
  EXPECT_EQ(coded_bits("dual", 16, 1024), 2.5);
  EXPECT_EQ(coded_bits("dual(128)", 16, 1024), 2.25);
}

}  // namespace
}  // namespace quern
