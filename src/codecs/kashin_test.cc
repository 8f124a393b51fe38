// SPDX-License-Identifier: Apache-2.0
#include "codecs/kashin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/float_types.h"
#include "codecs/bit_stream.h"
#include "codecs/codec.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

double square(const std::vector<float>& x) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value) * value;
  return sum;
}

std::vector<float> gaussian(int64_t n, uint64_t seed) {
  const Matrix<float> w = gaussian_matrix(1, n, seed);
  return {w.data(), w.data() + n};
}

std::vector<float> hadamard(int log2_n, std::vector<float> x) {
  kernels().fwht(log2_n, nullptr, static_cast<float>(1 / std::sqrt(std::exp2(log2_n))), x.data(),
                 x.data());
  return x;
}

struct Split {
  std::vector<float> r, u, v;
};

Split split(int log2_n, int rounds, const std::vector<float>& x) {
  Split s{x, std::vector<float>(x.size()), std::vector<float>(x.size())};
  kashin_split(log2_n, rounds, 0, s.r.data(), s.u.data(), s.v.data());
  return s;
}

// |x - (u + P v + r)| is of the rounding of sums: every step adds an ulp of the largest.
TEST(Kashin, SplitAddsUpToItsInput) {
  for (const int log2_n : {0, 1, 3, 7, 10}) {
    const std::vector<float> x = gaussian(int64_t{1} << log2_n, 1);
    const Split s = split(log2_n, 8, x);
    const std::vector<float> turned = hadamard(log2_n, s.v);
    const double tolerance = 8 * (4 + 2 * log2_n) * 4 * 0x1p-24;  // rounds * operations * largest
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(x[i], s.u[i] + turned[i] + s.r[i], tolerance) << log2_n;
    }
  }
}

// A step is a projection: it takes n c^2 from |r|^2, c = |r|_1 / n, which is 2 / pi of it for
// Gaussian numbers and at least 1 / n of it for any.
TEST(Kashin, RestFallsWithEveryRound) {
  const std::vector<float> x = gaussian(1024, 2);
  double before = square(x);
  for (int rounds = 1; rounds <= 7; ++rounds) {
    const double after = square(split(10, rounds, x).r);
    EXPECT_LT(after, 0.25 * before) << rounds;
    before = after;
  }
  EXPECT_LT(std::sqrt(before / square(x)), 1e-4);  // 0.7 a step
  std::vector<float> spike(256);
  spike[17] = 3;
  before = 9;
  for (int rounds = 1; rounds <= 7; ++rounds) {
    const double after = square(split(8, rounds, spike).r);
    EXPECT_LT(after, before);
    before = after;
  }
}

// Figures of the card of the method in units of the root mean square: about 0.5 and 1.5; those of x
// itself reach 4.
TEST(Kashin, BothFactorsAreFlat) {
  const std::vector<float> x = gaussian(4096, 3);
  const Split s = split(12, 12, x);
  const auto largest = [](const std::vector<float>& y) {
    float largest = 0;
    for (const float value : y) largest = std::max(largest, std::abs(value));
    return largest;
  };
  EXPECT_GT(largest(x), 3);
  EXPECT_LT(largest(s.u), 2);
  EXPECT_LT(largest(s.v), 1);
}

// Two steps of sizes c1, c2 leave c1 + c2 and c1 - c2, with either sign, and nothing else.
TEST(Kashin, OneRoundLeavesFourPeaks) {
  const std::vector<float> x = gaussian(512, 4);
  const Split s = split(9, 1, x);
  for (const auto& factor : {s.u, s.v}) {
    std::vector<float> magnitudes = factor;
    for (float& value : magnitudes) value = std::abs(value);
    std::sort(magnitudes.begin(), magnitudes.end());
    EXPECT_LT(magnitudes.front(), magnitudes.back());
    for (const float value : magnitudes) {
      EXPECT_TRUE(value == magnitudes.front() || value == magnitudes.back()) << value;
    }
  }
}

float level(const CodedMatrix& codes, int64_t i) {
  uint16_t half;
  std::memcpy(&half, codes.plane(2).data() + 2 * i, 2);
  return f16_to_float(half);
}

std::vector<float> signs_of(uint64_t seed, int64_t n) {
  Random random(seed);
  std::vector<float> signs;
  for (int64_t j = 0; j < n; ++j) signs.push_back(static_cast<float>(random.sign()));
  return signs;
}

// P is orthogonal, so |x - x_hat|^2 = |du|^2 + |dv|^2 + 2 du P dv, of which the last is small.
TEST(Kashin, ErrorsOfTheFactorsPredictThatOfTheWeights) {
  constexpr int64_t kCols = 1024;
  const Matrix<float> w = gaussian_matrix(1, kCols, 5);
  const auto codec = *make_codec("kashin(4, block=1024, rounds=0)");
  const CodedMatrix codes = code_matrix(*codec, w);
  const double error = mean_square_error(w, decode_matrix(*codec, codes)) * kCols;
  std::vector<float> x = signs_of(0, kCols);
  for (int64_t j = 0; j < kCols; ++j) x[static_cast<size_t>(j)] *= w(0, j);
  const Split s = split(10, 12, x);
  double predicted = 0;
  for (int64_t i = 0; i < kCols; ++i) {
    for (int factor = 0; factor < 2; ++factor) {
      const float value =
          std::abs(factor == 0 ? s.u[static_cast<size_t>(i)] + s.r[static_cast<size_t>(i)]
                               : s.v[static_cast<size_t>(i)]);
      const double low = value - level(codes, 2 * factor),
                   high = value - level(codes, 2 * factor + 1);
      predicted += std::min(low * low, high * high);
    }
  }
  EXPECT_NEAR(error, predicted, 0.2 * predicted);
}

TEST(Kashin, LevelsAreSymmetricAndDecodeIsTheSumOfTwo) {
  const auto codec = *make_codec("kashin(4, block=8)");
  CodedMatrix codes = *CodedMatrix::create(*codec, 1, 8);
  const std::vector<std::byte*> planes = codes.mutable_view().planes;
  const uint16_t halves[4] = {float_to_f16(1), float_to_f16(2), float_to_f16(0.5), float_to_f16(4)};
  std::memcpy(planes[2], halves, 8);
  const Matrix<float> plus = decode_matrix(*codec, codes);
  for (size_t factor = 0; factor < 2; ++factor) {
    for (int b = 0; b < 2; ++b) planes[factor][b] = std::byte{0xaa};  // the same with minus signs
  }
  const Matrix<float> minus = decode_matrix(*codec, codes);
  for (int64_t j = 0; j < 8; ++j) EXPECT_EQ(minus(0, j), -plus(0, j));
  // H of eight equal numbers is sqrt 8 of them at the first place: |w| is 1 but there.
  EXPECT_NEAR(std::abs(plus(0, 0)), 1 + 0.5 * std::sqrt(8.0), 1e-6);
  for (int64_t j = 1; j < 8; ++j) EXPECT_NEAR(std::abs(plus(0, j)), 1, 1e-6);
}

// The format's definition on the scalar kernels, any bytes.
TEST(Kashin, DecodesWhatTheFormatSays) {
  for (const int64_t n : {1, 7, 16, 33, 64, 100, 257}) {
    const auto codec = *make_codec("kashin(5, block=32, seed=3)");
    CodedMatrix codes = *CodedMatrix::create(*codec, 2, n);
    Random random(11);
    for (size_t p = 0; p < 2; ++p) {
      for (size_t i = 0; i < codes.specs()[p].n_bytes(); ++i) {
        codes.mutable_view().planes[p][i] = static_cast<std::byte>(random.next());
      }
    }
    for (int64_t k = 0; k < 12; ++k) {
      const uint16_t half = float_to_f16(static_cast<float>(random.gaussian()));
      std::memcpy(codes.mutable_view().planes[2] + 2 * k, &half, 2);
    }
    const std::vector<float> signs = signs_of(3, 32);
    const Matrix<float> decoded = decode_matrix(*codec, codes);
    const auto entry = [&](int factor, int64_t i, int64_t j) {
      const int bits = 3 - factor, half = 1 << (bits - 1);
      const auto* plane = reinterpret_cast<const uint8_t*>(codes.plane(factor).data());
      const auto code = static_cast<int>(get_code(plane + i * stream_bytes(n, bits), j, bits));
      const float magnitude = level(codes, i * 6 + factor * 4 + code % half);
      return code < half ? magnitude : -magnitude;
    };
    for (int64_t i = 0; i < 2; ++i) {
      for (int64_t at = 0, width = 0; at < n; at += width) {
        const int log2_n = static_cast<int>(std::log2(std::min<int64_t>(32, n - at)));
        width = int64_t{1} << log2_n;
        std::vector<float> turned;
        for (int64_t j = at; j < at + width; ++j) turned.push_back(entry(1, i, j));
        kernels(Isa::kRef).fwht(log2_n, nullptr, static_cast<float>(1 / std::sqrt(width)),
                                turned.data(), turned.data());
        for (int64_t j = at; j < at + width; ++j) {
          const float sum = entry(0, i, j) + turned[static_cast<size_t>(j - at)];
          EXPECT_EQ(decoded(i, j), signs[static_cast<size_t>(j % 32)] * sum) << n;
        }
      }
    }
  }
}

TEST(Kashin, TurnsLowerTheErrorAndTwoBitsBeatAnyTableOfFourLevels) {
  const Matrix<float> w = gaussian_matrix(64, 1024, 6);
  const double published = coding_error("kashin(2, rounds=0)", w);
  double before = published;
  for (const char* rounds : {"1", "4", "16"}) {
    const double error = coding_error(std::string("kashin(2, rounds=") + rounds + ")", w);
    EXPECT_LT(error, before) << rounds;
    before = error;
  }
  EXPECT_LT(before, 0.1175) << "Lloyd-Max";
  EXPECT_LT(before, 0.45 * published);
}

TEST(Kashin, MoreBitsLoseLess) {
  const Matrix<float> w = gaussian_matrix(16, 512, 7);
  double before = 1;
  for (const char* bits : {"2", "3", "4", "5", "6"}) {
    const double error = coding_error(std::string("kashin(") + bits + ")", w);
    EXPECT_LT(error, 0.45 * before) << bits;
    before = error;
  }
}

// The claim of the method: a basis beside the standard one takes up what a range cannot.
TEST(Kashin, OutliersCostLessThanInARange) {
  Matrix<float> w = gaussian_matrix(16, 1024, 8);
  Random random(9);
  for (int64_t i = 0; i < 16; ++i) {
    for (int k = 0; k < 10; ++k) w(i, static_cast<int64_t>(random.below(1024))) *= 8;
  }
  EXPECT_LT(coding_error("kashin(4)", w), 0.5 * coding_error("int(4, group=0)", w));
}

TEST(Kashin, RateIsOfTwoStreamsAndTheLevelsOfRows) {
  EXPECT_DOUBLE_EQ(coded_bits("kashin(2)", 3, 512), 2 + 2 * 16.0 / 512);
  EXPECT_DOUBLE_EQ(coded_bits("kashin(3)", 3, 512), 3 + 3 * 16.0 / 512);
  EXPECT_DOUBLE_EQ(coded_bits("kashin(6)", 3, 512), 6 + 8 * 16.0 / 512);
}

TEST(Kashin, BlocksArePowersOfTwo) {
  EXPECT_FALSE(make_codec("kashin(2, block=96)"));
  EXPECT_TRUE(make_codec("kashin(2, block=64)"));
  EXPECT_FALSE((*make_codec("kashin(6)"))->planes(int64_t{1} << 31, int64_t{1} << 31));
}

// A row's codes do not depend on the blocks it is coded in, but for where the search begins.
TEST(Kashin, ColumnsPastTheLastBlockAreCodedInSmallerOnes) {
  const auto codec = *make_codec("kashin(4, block=64)");
  for (const int64_t n : {1, 3, 65, 100, 127}) {
    const Matrix<float> w = gaussian_matrix(4, n, 10);
    const Matrix<float> decoded = decode_matrix(*codec, code_matrix(*codec, w));
    EXPECT_LT(mean_square_error(w, decoded), 0.05) << n;
  }
}

}  // namespace
}  // namespace quern
