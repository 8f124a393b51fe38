// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/file.h"
#include "codecs/level_tables.h"
#include "kvcache/kv_correction.h"
#include "kvcache/kv_levels.h"
#include "kvcache/kv_tables.h"
#include "kvcache/kv_testing.h"
#include "scratch.h"

namespace quern {
namespace {

// Keys with channels of their own: shifted, of other widths; one is constant.
Matrix<float> channels(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> x = gaussian_rows(rows, cols, seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      x(i, c) =
          c == 5 ? 3.0f : x(i, c) * static_cast<float>(1 + c % 4) + static_cast<float>(c % 7 * 3);
    }
  }
  return x;
}

struct Fitted {
  std::shared_ptr<const KvCodec> codec;
  std::vector<float> tables;
};

Fitted fitted(const char* text, KvSide side, const Matrix<float>& x, int64_t heads, int64_t head) {
  const auto codec = codec_of(text);
  const KvFitRows rows{side, heads, x.cols() / heads, x.view(), {}};
  std::vector<float> tables = *codec->fit(rows);
  return {*codec->with_tables(rows, head, tables), std::move(tables)};
}

// Positions [0, kKeyBlock) of a head.
std::vector<float> page_of(const Matrix<float>& x, KvSide side, int64_t d, int64_t head) {
  std::vector<float> page;
  const bool is_keys = side == KvSide::kKeys;
  for (int64_t i = 0; i < kKeyBlock * d; ++i) {
    page.push_back(is_keys ? x(i % kKeyBlock, head * d + i / kKeyBlock)
                           : x(i / d, head * d + i % d));
  }
  return page;
}

TEST(WeightedCells, LevelsAreTheBestThereAre) {
  WeightedCells cells;
  Random random(1);
  std::vector<std::pair<double, double>> points;
  for (int i = 0; i < 9; ++i) points.emplace_back(2 * random.uniform() - 1, .1 + random.uniform());
  for (const auto& [x, weight] : points) cells.add(x, weight);
  std::sort(points.begin(), points.end());
  // All ways to cut nine points into three parts.
  double best = std::numeric_limits<double>::infinity();
  for (size_t a = 1; a < 8; ++a) {
    for (size_t b = a + 1; b < 9; ++b) {
      double error = 0;
      for (const auto& [first, end] :
           {std::pair(size_t{0}, a), std::pair(a, b), std::pair(b, size_t{9})}) {
        double weight = 0, sum = 0, square = 0;
        for (size_t i = first; i < end; ++i) {
          weight += points[i].second;
          sum += points[i].second * points[i].first;
          square += points[i].second * points[i].first * points[i].first;
        }
        error += square - sum * sum / weight;
      }
      best = std::min(best, error);
    }
  }
  EXPECT_NEAR(cells.error_of(cells.best_levels(3)) * cells.weight(), best, 1e-12);
}

TEST(WeightedCells, NoWorseThanEvenOrNormalLevels) {
  WeightedCells cells;
  Random random(2);
  for (int i = 0; i < 20000; ++i) cells.add(random.gaussian() / 3, random.uniform());
  for (const int bits : {2, 3, 4}) {
    const int n = 1 << bits;
    std::vector<double> even, normal;
    for (int i = 0; i < n; ++i) {
      even.push_back(-1 + (2.0 * i + 1) / n);
      normal.push_back(double{kLloydLevels[bits - 1][static_cast<size_t>(i)]} /
                       kLloydLevels[bits - 1].back());
    }
    const double best = cells.error_of(cells.best_levels(n));
    EXPECT_LT(best, cells.error_of(even));
    EXPECT_LT(best, cells.error_of(normal));
  }
  EXPECT_EQ(WeightedCells().best_levels(2), (std::vector<double>{-1, 1}));
}

TEST(WeightedCells, RowsAreLookedUpAlikeAtEveryIsa) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  const std::vector<float> tables = gaussian_page(1, 3);  // 4 rows
  std::vector<uint8_t> codes;
  Random random(4);
  for (int i = 0; i < 4 * 128; ++i) codes.push_back(static_cast<uint8_t>(random.below(16)));
  std::vector<float> x(codes.size()), y(codes.size());
  look_up_rows_ref(codes.data(), tables.data(), 4, 128, x.data());
  look_up_rows_avx512(codes.data(), tables.data(), 4, 128, y.data());
  EXPECT_EQ(x, y);
}

// What is kept apart is right to the rounding of a half; the rest is as far off as the levels are
// wide at most, and beyond the range what it is beyond.
TEST(KvNuq, EveryNumberIsNearItsLevelOrApart) {
  constexpr int64_t kDims = 48, kHeads = 2;
  for (const KvSide side : kSides) {
    const Matrix<float> x = side == KvSide::kKeys ? channels(640, kDims * kHeads, 5)
                                                  : gaussian_rows(640, kDims * kHeads, 5);
    for (const char* text : {"nuq(4)", "nuq(2, outliers=3)", "nuq(3, outliers=0)"}) {
      const Fitted fit = fitted(text, side, x, kHeads, 1);
      const size_t n_levels = text[4] == '4' ? 16 : text[4] == '3' ? 8 : 4;
      const std::vector<float> page = page_of(x, side, kDims, 1),
                               y = coded(*fit.codec, side, kDims, page);
      double widest = 1 + fit.tables[0];  // from the ends to the outer levels; else half a gap
      widest = std::max(widest, 1.0 - fit.tables[n_levels - 1]);
      for (size_t i = 0; i + 1 < n_levels; ++i) {
        widest = std::max(widest, double{fit.tables[i + 1] - fit.tables[i]} / 2);
      }
      for (size_t i = 0; i < page.size(); ++i) {
        double half = 0, beyond = 0;
        if (side == KvSide::kKeys) {
          const size_t c = static_cast<size_t>(kDims) + i / kKeyBlock, width = kDims * kHeads;
          const double centre = fit.tables[n_levels + 2 + c];
          half = fit.tables[n_levels + 2 + width + c];
          beyond = std::max(0.0, std::fabs(page[i] - centre) - half);
        } else {
          const auto row = page.begin() + static_cast<int64_t>(i / kDims * kDims);
          const auto [low, high] = std::minmax_element(row, row + kDims);
          half = (*high - *low) / 2;
        }
        EXPECT_LE(std::fabs(page[i] - y[i]), beyond + half * widest * 1.001 + 32 * 0x1p-11)
            << text << i;
      }
    }
  }
}

TEST(KvNuq, FarNumbersComeBackAsHalves) {
  constexpr int64_t kDims = 64;
  const Matrix<float> x = channels(640, kDims, 6);
  for (const KvSide side : kSides) {
    const Fitted fit = fitted("nuq(2)", side, x, 1, 0);
    std::vector<float> page = page_of(x, side, kDims, 0);
    std::vector<float> y = coded(*fit.codec, side, kDims, page);
    for (const size_t at : {7U, 1000U, 1001U, 4095U}) page[at] = at % 2 == 0 ? 200.f : -150.25f;
    const std::vector<float> z = coded(*fit.codec, side, kDims, page);
    for (const size_t at : {7U, 1000U, 1001U, 4095U}) EXPECT_NEAR(z[at], page[at], 256 * 0x1p-11);
    // Those of keys have ranges that do not follow: all others stay, but four that made room.
    if (side == KvSide::kKeys) {
      int n_other = 0;
      for (size_t i = 0; i < y.size(); ++i) n_other += y[i] != z[i] ? 1 : 0;
      EXPECT_LE(n_other, 8);
    }
  }
}

// As many as there is room for; keys those beyond their ranges only.
TEST(KvNuq, KeepsApartWhatItCounts) {
  constexpr int64_t kDims = 64;
  const Matrix<float> x = gaussian_rows(6400, kDims, 7);
  for (const KvSide side : kSides) {
    const Fitted fit = fitted("nuq(3)", side, x, 1, 0);
    std::vector<std::byte> page(static_cast<size_t>(fit.codec->page_bytes(side, kDims)));
    fit.codec->encode(side, kDims, page_of(x, side, kDims, 0).data(), page.data());
    const int64_t n = outlier_count(1, 64 * kDims);
    EXPECT_EQ(n, 41);
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      uint16_t delta = 0;
      std::memcpy(&delta, page.data() + page.size() - static_cast<size_t>(4 * n - 2 * i), 2);
      n_kept += delta != 0 ? 1 : 0;
    }
    EXPECT_LE(n_kept, n);
    EXPECT_GT(n_kept, side == KvSide::kKeys ? n / 2 : n - 1);
  }
}

TEST(KvNuq, QnormKeepsMeanAndDeviation) {
  const Matrix<float> x = gaussian_rows(640, 64, 8);
  const auto moments = [&](const char* text) {
    const Fitted fit = fitted(text, KvSide::kKeys, x, 1, 0);
    double sum = 0, square = 0;
    for (int64_t first = 0; first < 640; first += kKeyBlock) {
      Matrix<float> part(kKeyBlock, 64);
      std::copy_n(x.row(first), kKeyBlock * 64, part.data());
      for (const float y :
           coded(*fit.codec, KvSide::kKeys, 64, page_of(part, KvSide::kKeys, 64, 0))) {
        sum += y;
        square += double{y} * y;
      }
    }
    return std::pair(sum / (640 * 64), square / (640 * 64));
  };
  double energy = 0;
  for (int64_t i = 0; i < 640 * 64; ++i) energy += double{x.data()[i]} * x.data()[i] / (640 * 64);
  // 2 bits lose a tenth of the energy within the ranges; ranges cut one number of a hundred.
  EXPECT_LT(moments("nuq(2)").second, .95 * energy);
  EXPECT_NEAR(moments("nuq(2, qnorm=true)").second, energy, .03 * energy);
}

// Numbers whose errors count for nothing have no part in where levels lie.
TEST(KvNuq, LevelsLieWhereErrorsCount) {
  constexpr float kAt[] = {-.7f, -.2f, .3f, .8f}, kNear = .02f;
  Random random(11);
  Matrix<float> x(256, 32), weights(256, 32);
  for (int64_t i = 0; i < 256; ++i) {
    for (int64_t c = 0; c < 32; ++c) {
      // Every channel and every position of a head reaches from -1 to 1, so that u = x.
      const int64_t place = (i + c) % 16;
      x(i, c) = place < 2 ? 2.f * static_cast<float>(place) - 1
                          : static_cast<float>(2 * random.uniform() - 1);
      for (const float at : kAt) {
        if (std::fabs(x(i, c) - at) < kNear) weights(i, c) = 1e-9f * (1.f + at);
      }
    }
  }
  const auto codec = codec_of("nuq(2, outliers=0)");
  for (const KvSide side : kSides) {
    const KvFitRows weighed{side, 2, 16, x.view(), weights.view()},
        alike{side, 2, 16, x.view(), {}};
    const std::vector<float> tables = *codec->fit(weighed), even = *codec->fit(alike);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(tables[i], kAt[i], kNear + .5 / 127) << i;
    }
    EXPECT_LT(even[0], kAt[0] - 2 * kNear);
  }
  for (const float wrong : {-1.f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    weights(200, 3) = wrong;
    EXPECT_FALSE(codec->fit({KvSide::kKeys, 2, 16, x.view(), weights.view()})) << wrong;
  }
}

TEST(KvNuq, TablesThatCannotBeAreRefused) {
  const Matrix<float> x = gaussian_rows(128, 32, 9);
  const auto codec = codec_of("nuq(2)");
  for (const KvSide side : kSides) {
    const KvFitRows rows{side, 2, 16, x.view(), {}};
    const std::vector<float> tables = *codec->fit(rows);
    EXPECT_TRUE(codec->with_tables(rows, 1, tables));
    EXPECT_FALSE(codec->with_tables(rows, 1, std::span(tables).first(tables.size() - 1)));
    for (const size_t at : {size_t{0}, size_t{4}, size_t{5}, tables.size() - 1}) {
      std::vector<float> wrong = tables;
      wrong[at] = std::nanf("");
      EXPECT_FALSE(codec->with_tables(rows, 0, wrong)) << at;
    }
    std::vector<float> wrong = tables;
    std::swap(wrong[0], wrong[3]);
    EXPECT_FALSE(codec->with_tables(rows, 0, wrong));
  }
  Matrix<float> none = gaussian_rows(128, 32, 9);
  none(7, 7) = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(codec->fit({KvSide::kKeys, 2, 16, none.view(), {}}));
}

TEST(KvTableSet, ComesBackAndRefusesWhatItIsNot) {
  const Matrix<float> x = gaussian_rows(128, 32, 10);
  const auto codec = codec_of("nuq(2)");
  const KvFitRows rows{KvSide::kKeys, 2, 16, x.view(), {}};
  KvTableSet set;
  set.model = "some";
  set.put(3, KvSide::kKeys, *codec, *codec->fit(rows));
  const test::ScratchFolder scratch;
  ASSERT_TRUE(set.save(scratch / "tables"));
  const auto read = KvTableSet::open(scratch / "tables");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->model, "some");
  const auto codecs = read->codecs(3, rows, *codec);
  ASSERT_TRUE(codecs);
  EXPECT_EQ(codecs->size(), 2U);
  EXPECT_FALSE(read->codecs(2, rows, *codec));
  EXPECT_FALSE(read->codecs(3, rows, *codec_of("nuq(3)")));
  const std::string image = *read_file(scratch / "tables");
  for (size_t n = 0; n < image.size(); n += 1 + n / 8) {
    EXPECT_FALSE(KvTableSet::parse(std::as_bytes(std::span(image.data(), n)))) << n;
  }
}

}  // namespace
}  // namespace quern
