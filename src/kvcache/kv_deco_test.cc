// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "kvcache/kv_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims = 32;

// Channels that go together in blocks of 8, some of them large.
Matrix<float> correlated_rows(int64_t n, uint64_t seed) {
  Matrix<float> x = gaussian_rows(n, 2 * kDims, seed);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < 2 * kDims; ++c) {
      x(i, c) = x(i, c) * (c % 8 == 3 ? 12.0f : 1.0f) + .8f * x(i, c / 8 * 8);
    }
  }
  return x;
}

std::vector<float> page_of(const Matrix<float>& x, KvSide side, int64_t head) {
  std::vector<float> page;
  for (int64_t i = 0; i < kKeyBlock * kDims; ++i) {
    const bool is_keys = side == KvSide::kKeys;
    page.push_back(is_keys ? x(i % kKeyBlock, head * kDims + i / kKeyBlock)
                           : x(i / kDims, head * kDims + i % kDims));
  }
  return page;
}

struct Fitted {
  std::shared_ptr<const KvCodec> codec;
  std::vector<float> small;
};

Fitted fitted(std::string_view text, KvSide side, const Matrix<float>& x) {
  const auto codec = codec_of(text);
  const KvFitRows rows{side, 2, kDims, x.view(), {}};
  std::vector<float> small = *codec->fit(rows);
  return {*codec->with_tables(rows, 1, small), std::move(small)};
}

// Nothing is cut off. The large factor is rounded to halves, and so is the small one before it is
// inverted: what is left is the first, times what the small one stretches it by.
TEST(KvDeco, WithoutRoundingAllComesBack) {
  const Matrix<float> x = correlated_rows(kKeyBlock, 1);
  for (const char* text : {"deco(f16, block=8)", "deco(f16, block=16, split=0)",
                           "deco(f16, block=1)", "deco(f16, split=1)"}) {
    for (const KvSide side : kSides) {
      const std::vector<float> page = page_of(x, side, 1),
                               y = coded(*fitted(text, side, x).codec, side, kDims, page);
      for (size_t i = 0; i < page.size(); ++i)
        EXPECT_NEAR(y[i], page[i], 16 * 50 * 0x1p-11 * .2) << text;
    }
  }
}

// With one channel there is nothing to change but the sign.
TEST(KvDeco, BlocksOfOneAreTheCodecItself) {
  const Matrix<float> x = correlated_rows(kKeyBlock, 2);
  const auto plain = codec_of("int(3)");
  for (const KvSide side : kSides) {
    const Fitted one = fitted("deco(int(3), block=1, split=1)", side, x);
    EXPECT_EQ(one.small, std::vector<float>{1});
    const std::vector<float> page = page_of(x, side, 1);
    std::vector<std::byte> a(static_cast<size_t>(plain->page_bytes(side, kDims))), b(a.size());
    plain->encode(side, kDims, page.data(), a.data());
    one.codec->encode(side, kDims, page.data(), b.data());
    EXPECT_EQ(a, b);
    EXPECT_EQ(coded(*plain, side, kDims, page), coded(*one.codec, side, kDims, page));
  }
}

// Both factors have the same energy in the same directions, up to one number: T_L' T_L is
// T_S T_S' (the rounding of the small factor to halves aside).
TEST(KvDeco, TheHalfSplitIsBalanced) {
  constexpr int64_t kBlock = 8;
  const Matrix<float> x = correlated_rows(kKeyBlock, 3);
  const Fitted fit = fitted("deco(f16, block=8)", KvSide::kValues, x);
  Matrix<double> small(kBlock, kBlock);
  for (int64_t i = 0; i < kBlock * kBlock; ++i) small.data()[i] = fit.small[static_cast<size_t>(i)];
  // T_S T_S', its diagonal the singular values in parts of the largest.
  std::vector<double> diagonal;
  for (int64_t a = 0; a < kBlock; ++a) {
    for (int64_t b = 0; b < kBlock; ++b) {
      double dot = 0;
      for (int64_t j = 0; j < kBlock; ++j) dot += small(a, j) * small(b, j);
      if (a == b) {
        diagonal.push_back(dot);
      } else {
        EXPECT_NEAR(dot, 0, kBlock * 0x1p-10);
      }
    }
  }
  EXPECT_NEAR(diagonal[0], 1, 0x1p-9);
  EXPECT_TRUE(std::is_sorted(diagonal.rbegin(), diagonal.rend()));
  // T_L = M T_S^-1 by way of M = T_L T_S: its columns are orthogonal, with energies in proportion.
  std::vector<double> energies;
  for (int64_t a = 0; a < kBlock; ++a) {
    double energy = 0;
    for (int64_t row = 0; row < kKeyBlock * 2 * kDims / kBlock; ++row) {
      double entry = 0;  // T_S T_S' is diagonal, so T_S' over it inverts T_S
      for (int64_t j = 0; j < kBlock; ++j) entry += x.data()[row * kBlock + j] * small(a, j);
      energy += std::pow(entry / diagonal[static_cast<size_t>(a)], 2);
    }
    energies.push_back(energy);
  }
  for (size_t a = 0; a < kBlock; ++a) {
    EXPECT_NEAR(energies[a] / energies[0], diagonal[a] / diagonal[0], .02 * diagonal[a] + .002);
  }
}

double error_of(const KvCodec& codec, KvSide side, const std::vector<float>& page) {
  const std::vector<float> y = coded(codec, side, kDims, page);
  double error = 0;
  for (size_t i = 0; i < page.size(); ++i) error += std::pow(double{y[i]} - page[i], 2);
  return error;
}

// Large channels go into the small factor; noise without directions gains nothing.
TEST(KvDeco, HelpsWhereChannelsDifferAndOnlyThere) {
  const auto plain = codec_of("int(4, group=32)");
  const Matrix<float> x = correlated_rows(kKeyBlock, 4),
                      noise = gaussian_rows(kKeyBlock, 2 * kDims, 5);
  const auto ratio = [&](const Matrix<float>& rows) {
    const std::vector<float> page = page_of(rows, KvSide::kValues, 1);
    const Fitted fit = fitted("deco(int(4, group=32), block=8)", KvSide::kValues, rows);
    return error_of(*fit.codec, KvSide::kValues, page) / error_of(*plain, KvSide::kValues, page);
  };
  EXPECT_LT(ratio(x), .6);
  EXPECT_GT(ratio(noise), .9);
}

TEST(KvDeco, PagesWithoutNumbersAndWrongTablesAreSafe) {
  Matrix<float> x = correlated_rows(kKeyBlock, 6);
  const auto codec = codec_of("deco(int(2), block=8)");
  for (int64_t i = 0; i < kKeyBlock; i += 5) x(i, i) = i % 2 == 0 ? std::nanf("") : INFINITY;
  const KvFitRows rows{KvSide::kKeys, 2, kDims, x.view(), {}};
  EXPECT_TRUE(codec->with_tables(rows, 0, *codec->fit(rows)));
  const Matrix<float> none(kKeyBlock, 2 * kDims);
  const KvFitRows zeros{KvSide::kKeys, 2, kDims, none.view(), {}};
  EXPECT_TRUE(codec->with_tables(zeros, 0, *codec->fit(zeros)));
  std::vector<float> wrong(64, 1.0f);
  EXPECT_FALSE(codec->with_tables(rows, 0, wrong));  // singular
  wrong[3] = std::nanf("");
  EXPECT_FALSE(codec->with_tables(rows, 0, wrong));
  EXPECT_FALSE(codec->with_tables(rows, 0, std::span(wrong).first(63)));
  EXPECT_FALSE(codec->check(KvSide::kKeys, 20));
  EXPECT_FALSE(make_kv_codec(*spec::parse_call("deco(nuq(2))")));
}

}  // namespace
}  // namespace quern
