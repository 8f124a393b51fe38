// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "base/float_types.h"
#include "codecs/codec.h"
#include "codecs/test_matrices.h"

namespace quern {
namespace {

using Places = std::set<std::pair<int64_t, int64_t>>;

// Where `layout=csr` planes say weights are kept.
Places kept_places(const CodedMatrix& codes) {
  const size_t n = codes.specs().size();
  const auto* ends = reinterpret_cast<const uint32_t*>(codes.plane(n - 3).data());
  const auto* columns = reinterpret_cast<const uint16_t*>(codes.plane(n - 2).data());
  Places places;
  for (int64_t i = 0; i < codes.n_out(); ++i) {
    for (uint32_t slot = i == 0 ? 0 : ends[i - 1]; slot < ends[i]; ++slot) {
      places.insert({i, columns[slot]});
    }
  }
  return places;
}

float as_half(float value) { return f16_to_float(float_to_f16(value)); }

TEST(Outliers, KeptWeightsAreHalvesOfWeightsAndOthersOnTheGrid) {
  const auto codec = *make_codec("outliers(int(4, group=0), percent=1)");
  Matrix<float> w = gaussian_matrix(40, 250, 1);
  const CodedMatrix codes = code_matrix(*codec, w);
  const Matrix<float> decoded = decode_matrix(*codec, codes);
  const Places kept = kept_places(codes);
  EXPECT_EQ(kept.size(), 100u);  // of 10000
  float least = std::numeric_limits<float>::infinity();
  for (const auto& [i, j] : kept) {
    EXPECT_EQ(decoded(i, j), as_half(w(i, j)));
    least = std::min(least, std::abs(w(i, j)));
    w(i, j) = 0;
  }
  const auto inner = *make_codec("int(4, group=0)");
  const Matrix<float> rest = decode_matrix(*inner, code_matrix(*inner, w));
  double sum = 0;
  for (int64_t i = 0; i < 10000; ++i) sum += w.data()[i];
  const double mean = std::abs(sum / 1e4);  // scores count from it; twice covers what was taken out
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) {
      if (kept.contains({i, j})) continue;
      EXPECT_LE(std::abs(w(i, j)), least + 2 * mean + 0.02);
      EXPECT_EQ(decoded(i, j), rest(i, j));
    }
  }
}

// By simulation of EasyQuant, rows of 4096 at 4 bits: 0.0247, 0.0128, 0.0150 and 0.0106 for codes
// of -7 to 7. The search here uses -8 too, which the unsearched grid has no use for.
TEST(Outliers, SearchAndOutliersTogetherReachTheErrorOfEasyQuant) {
  const Matrix<float> w = gaussian_matrix(128, 4096, 2);
  const std::string search = "int(4, group=0, clip=search, norm=2)";
  EXPECT_NEAR(coding_error("int(4, group=0)", w), 0.0247, 0.0005);
  EXPECT_LE(coding_error(search, w), 0.0128);
  EXPECT_NEAR(coding_error("outliers(int(4, group=0), percent=1, sigmas=3)", w), 0.0150, 0.0003);
  EXPECT_LE(coding_error("outliers(" + search + ", percent=1, sigmas=3)", w), 0.0106);
}

TEST(Outliers, NoneIsKeptWithinTheSigmas) {
  const auto codec = *make_codec("outliers(int(4, group=0), percent=1, sigmas=3)");
  const Matrix<float> w = gaussian_matrix(64, 512, 3);
  const Places kept = kept_places(code_matrix(*codec, w));
  int64_t beyond = 0;  // the mean is within 5 / sqrt(n) of zero, the deviation 1
  const double slack = 5 / std::sqrt(64.0 * 512);
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) {
      beyond += std::abs(w(i, j)) > 3 + slack ? 1 : 0;
      if (kept.contains({i, j})) {
        EXPECT_GE(std::abs(w(i, j)), 3 - slack);
      }
    }
  }
  EXPECT_GE(static_cast<int64_t>(kept.size()), beyond);
  EXPECT_GT(beyond, 0);
  EXPECT_LT(kept.size(), 327u) << "there is room for more";
}

TEST(Outliers, GroupsKeepTheLargestOfEverySpan) {
  const auto codec = *make_codec("outliers(int(4, group=64), percent=0.8, layout=groups)");
  const Matrix<float> w = gaussian_matrix(5, 600, 4);
  const Matrix<float> decoded = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t col = 0; col < 600; col += 256) {
      float first = 0, second = 0;
      for (int64_t j = col; j < std::min<int64_t>(col + 256, 600); ++j) {
        if (std::abs(w(i, j)) > std::abs(first)) {
          second = first;
          first = w(i, j);
        } else if (std::abs(w(i, j)) > std::abs(second)) {
          second = w(i, j);
        }
      }
      for (const float kept : {first, second}) {
        EXPECT_TRUE(std::any_of(decoded.row(i) + col,
                                decoded.row(i) + std::min<int64_t>(col + 256, 600),
                                [&](float value) { return value == as_half(kept); }));
      }
    }
  }
}

TEST(Outliers, SpansNarrowerThanTheirSlotsAreExact) {
  const auto codec = *make_codec("outliers(int(2, group=0), percent=5, layout=groups)");
  const Matrix<float> w = gaussian_matrix(4, 265, 5);  // 13 slots for the last 9 columns
  const Matrix<float> decoded = decode_matrix(*codec, code_matrix(*codec, w));
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 256; j < 265; ++j) EXPECT_EQ(decoded(i, j), as_half(w(i, j)));
  }
}

// What is coded late differs from W by the errors before it; its place was chosen from W.
TEST(Outliers, ValuesAreThoseOfTheTargets) {
  for (const std::string layout : {"csr", "groups"}) {
    const auto codec = *make_codec("outliers(int(4, group=0), percent=2, layout=" + layout + ")");
    Matrix<float> w = gaussian_matrix(3, 300, 6);
    for (int64_t i = 0; i < 3; ++i) w(i, 40) = w(i, 290) = 9.125f + static_cast<float>(i);
    CodedMatrix codes = code_matrix(*codec, w);
    Matrix<float> w_hat(3, 1);
    for (const int64_t j : {40, 290}) {
      Matrix<float> target(3, 1);
      for (int64_t i = 0; i < 3; ++i) target(i, 0) = w(i, j) - 20.03125f;
      codec->encode(target.view(), 0, j, codes.mutable_view(), w_hat.view());
      EXPECT_EQ(w_hat, target) << layout;
    }
  }
}

TEST(Outliers, ErrorsOfColumnsThatMatterAreKept) {
  const Matrix<float> w = gaussian_matrix(32, 256, 7);
  std::vector<float> weight(256, 1.0f);
  for (size_t j = 100; j < 110; ++j) weight[j] = 1000;
  const auto kept_in_heavy = [&](const std::string& select) {
    const auto codec = *make_codec("outliers(int(3, group=0), percent=2, select=" + select + ")");
    CodedMatrix codes = *CodedMatrix::create(*codec, 32, 256);
    codec->fit_matrix({w.view(), weight}, codes.mutable_view());
    const Places kept = kept_places(codes);
    EXPECT_EQ(kept.size(), 164u);
    return std::count_if(kept.begin(), kept.end(), [](const auto& place) {
      return place.second >= 100 && place.second < 110;
    });
  };
  EXPECT_LT(kept_in_heavy("magnitude"), 20);  // 4 % of the columns
  EXPECT_GE(kept_in_heavy("error"), 150);
}

TEST(Outliers, RateIsThatOfTheCodecAndThePlaces) {
  EXPECT_DOUBLE_EQ(coded_bits("outliers(int(4, group=64), percent=0.5)", 256, 1024),
                   coded_bits("int(4, group=64)", 256, 1024) + (1311 * 32.0 + 256 * 32) / 262144);
  EXPECT_DOUBLE_EQ(coded_bits("outliers(int(4, group=64), percent=0.8, layout=groups)", 256, 1024),
                   coded_bits("int(4, group=64)", 256, 1024) + 2 * 24.0 / 256);
  const auto codec = *make_codec("outliers(int(4, group=64))");
  const auto wide = *codec->planes(1, 65537);
  EXPECT_EQ(wide[wide.size() - 2].dtype, DType::kU32);
  EXPECT_FALSE(codec->planes(int64_t{1} << 40, int64_t{1} << 40));
}

TEST(Outliers, WideMatricesCountColumnsInFullWords) {
  const auto codec = *make_codec("outliers(int(4, group=64), percent=0.01)");
  Matrix<float> w(1, 70000);
  w(0, 69999) = 3.140625f;
  EXPECT_EQ(decode_matrix(*codec, code_matrix(*codec, w))(0, 69999), 3.140625f);
}

// Whatever the bytes of the places, only entries of the row are written.
TEST(Outliers, PlacesThatCannotBeAreNotFollowed) {
  const auto codec = *make_codec("outliers(int(4, group=0), percent=1)");
  const Matrix<float> w = gaussian_matrix(10, 100, 8);
  Matrix<float> rest = w;
  CodedMatrix codes = code_matrix(*codec, w);
  auto* ends = reinterpret_cast<uint32_t*>(codes.mutable_view().planes[2]);
  auto* columns = reinterpret_cast<uint16_t*>(codes.mutable_view().planes[3]);
  const Matrix<float> sound = decode_matrix(*codec, codes);
  const uint32_t last = ends[9];
  ends[9] = std::numeric_limits<uint32_t>::max();  // past the room
  EXPECT_EQ(decode_matrix(*codec, codes), sound);
  ends[9] = last;
  for (uint32_t i = 0; i < last; ++i) columns[i] = 100;  // past the columns
  const Matrix<float> none = decode_matrix(*codec, codes);
  for (uint32_t i = 0; i < last; ++i) columns[i] = 5;
  std::fill_n(ends, 10, last);  // all in the first row
  const Matrix<float> first = decode_matrix(*codec, codes);
  ends[4] = 0;  // falls, so that the rest of the rows begins anew
  const Matrix<float> falling = decode_matrix(*codec, codes);
  for (int64_t i = 0; i < 10; ++i) {
    for (int64_t j = 0; j < 100; ++j) {
      const bool is_named = j == 5 && i == 0;
      if (!is_named) {
        EXPECT_EQ(first(i, j), none(i, j));
      }
      if (!is_named && !(i == 5 && j == 5)) {
        EXPECT_EQ(falling(i, j), none(i, j));
      }
    }
  }
}

TEST(Outliers, NotANumberIsNoOutlier) {
  Matrix<float> w = gaussian_matrix(8, 64, 9);
  for (int64_t j = 0; j < 64; ++j) w(3, j) = std::numeric_limits<float>::quiet_NaN();
  for (const std::string layout : {"csr", "groups"}) {
    const auto codec = *make_codec("outliers(int(4, group=64), percent=2, layout=" + layout + ")");
    const Matrix<float> decoded = decode_matrix(*codec, code_matrix(*codec, w));
    EXPECT_TRUE(std::isfinite(decoded(0, 0))) << layout;
  }
}

TEST(Outliers, WhatCannotBeForwardedIsDeclined) {
  EXPECT_FALSE(make_codec("outliers(trellis(2))"));
  EXPECT_FALSE(make_codec("outliers(outliers(int(4)))"));
  EXPECT_FALSE(make_codec("outliers(int(4), sigmas=3, layout=groups)"));
  EXPECT_FALSE(make_codec("outliers(int(4), sigmas=3, select=error)"));
  EXPECT_FALSE(make_codec("outliers(int(9))"));
}

}  // namespace
}  // namespace quern
