// SPDX-License-Identifier: Apache-2.0
// qaq by itself: bits follow what attention allows, and what is allowed is kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/float_types.h"
#include "kvcache/kv_correction.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims = 64, kPositions = 1000;

std::vector<int> widths_of(const std::vector<std::byte>& page) {
  std::vector<int> widths;
  for (size_t p = 0; p < kKeyBlock; ++p) {
    widths.push_back(std::to_integer<int>(page[p / 2]) >> (p % 2 * 4) & 15);
  }
  return widths;
}

std::vector<float> decoded(const KvCodec& codec, KvSide side, const std::vector<std::byte>& page) {
  KvScratchMemory scratch;
  std::vector<float> y(kKeyBlock * kDims);
  const KvOperand read = codec.read(side, kDims, page.data(), nullptr, scratch.view(kDims));
  const float* floats = floats_of(read, kKeyBlock * kDims, y.data());
  std::copy_n(floats, y.size(), y.begin());
  return y;
}

int64_t place_of(KvSide side, int64_t p, int64_t c) {
  return side == KvSide::kKeys ? c * kKeyBlock + p : p * kDims + c;
}

std::vector<float> uniform_page(uint64_t seed) {
  Random random(seed);
  std::vector<float> x(kKeyBlock * kDims);
  for (float& value : x) value = static_cast<float>(2 * random.uniform() - 1);
  return x;
}

// Weights of a page's positions, from small to large.
std::vector<float> rising_weights() {
  std::vector<float> weights;
  for (int p = 0; p < kKeyBlock; ++p) weights.push_back(std::exp2f(-16 + p * 16.0f / kKeyBlock));
  return weights;
}

TEST(Qaq, BitsFollowWeightsOfValuesAndNormsOfQueries) {
  const auto codec = codec_of("qaq(20, low=0, high=8, outliers=0)");
  const std::vector<float> x = uniform_page(1), weights = rising_weights();
  const KvAttention seen{weights.data(), 1, kPositions};
  const auto values = widths_of(codec->encode_seen(KvSide::kValues, kDims, x.data(), seen));
  EXPECT_EQ(values.front(), 0);
  EXPECT_GT(values.back(), 6);
  for (size_t p = 16; p < values.size(); ++p) EXPECT_GE(values[p], values[p - 16]) << p;
  // Keys do not ask for weights: as uniform as their ranges.
  int before = 0;
  for (const double norm : {1e-4, 1e-2, 1.0, 1e2}) {
    const KvAttention of_norm{weights.data(), norm, kPositions};
    const auto keys = widths_of(codec->encode_seen(KvSide::kKeys, kDims, x.data(), of_norm));
    const auto [least, most] = std::minmax_element(keys.begin(), keys.end());
    EXPECT_LE(*most - *least, 1);
    EXPECT_GE(*least, before);
    before = *most;
  }
  EXPECT_GT(before, 4);
}

TEST(Qaq, BitsRiseWithRangesAndFallWithTheErrorAllowed) {
  std::vector<float> x = uniform_page(2);
  for (int64_t p = 0; p < kKeyBlock; ++p) {  // ranges double every eight positions
    for (int64_t c = 0; c < kDims; ++c) x[static_cast<size_t>(p * kDims + c)] *= std::exp2f(p / 8);
  }
  std::vector<float> turned(x.size());
  for (int64_t p = 0; p < kKeyBlock; ++p) {
    for (int64_t c = 0; c < kDims; ++c) {
      turned[static_cast<size_t>(c * kKeyBlock + p)] = x[static_cast<size_t>(p * kDims + c)];
    }
  }
  const std::vector<float> weights(kKeyBlock, 1.0f / kPositions);
  const KvAttention seen{weights.data(), 1, kPositions};
  for (const KvSide side : kSides) {
    const std::vector<float>& page = side == KvSide::kKeys ? turned : x;
    std::vector<int> before(kKeyBlock, 8);
    for (const int error : {1, 3, 10, 30, 100}) {
      const auto codec = codec_of(fmt::format("qaq({}, low=0, high=8, outliers=0)", error));
      const auto widths = widths_of(codec->encode_seen(side, kDims, page.data(), seen));
      for (size_t p = 16; p < widths.size(); ++p) EXPECT_GE(widths[p], widths[p - 16]) << p;
      for (size_t p = 0; p < widths.size(); ++p) EXPECT_LE(widths[p], before[p]);
      before = widths;
    }
  }
}

TEST(Qaq, BitsStayWithinTheirBounds) {
  const std::vector<float> x = uniform_page(3), weights = rising_weights();
  const auto codec = codec_of("qaq(20, low=2, high=3)");
  for (const KvSide side : kSides) {
    const KvAttention seen{weights.data(), 1, kPositions};
    for (const int width : widths_of(codec->encode_seen(side, kDims, x.data(), seen))) {
      EXPECT_TRUE(width == 2 || width == 3);
    }
    // Nothing is known, or there is one position: the most.
    for (const KvAttention& none : {KvAttention{}, KvAttention{weights.data(), 1, 1}}) {
      for (const int width : widths_of(codec->encode_seen(side, kDims, x.data(), none))) {
        EXPECT_EQ(width, 3);
      }
    }
  }
  EXPECT_FALSE(make_kv_codec(*spec::parse_call("qaq(10, low=4, high=2)")));
}

// An output of attention is off by `error` of the root mean square of values, at most, and not by
// much less where steps are as wide as they may be.
TEST(Qaq, OutputsKeepTheErrorOfValues) {
  const auto codec = codec_of("qaq(2, low=0, high=8, outliers=0)");
  double squares = 0, energy = 0;
  int64_t n = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> x = uniform_page(seed);
    Random random(seed, 1);
    std::vector<float> weights(kKeyBlock);
    float sum = 0;
    for (float& w : weights) sum += w = static_cast<float>(std::exp(random.gaussian()));
    for (float& w : weights) w /= sum;
    const auto page =
        codec->encode_seen(KvSide::kValues, kDims, x.data(), {weights.data(), 1, kKeyBlock});
    const std::vector<float> y = decoded(*codec, KvSide::kValues, page);
    for (int64_t c = 0; c < kDims; ++c, ++n) {
      double error = 0;
      for (int64_t p = 0; p < kKeyBlock; ++p) {
        const auto at = static_cast<size_t>(p * kDims + c);
        error += weights[static_cast<size_t>(p)] * (static_cast<double>(y[at]) - x[at]);
        energy += static_cast<double>(x[at]) * x[at] / kKeyBlock;
      }
      squares += error * error;
    }
  }
  const double allowed = .02 * std::sqrt(energy / static_cast<double>(n));
  const double measured = std::sqrt(squares / static_cast<double>(n));
  EXPECT_LE(measured, allowed);
  EXPECT_GE(measured, allowed / 2);  // a step is cut to the next power of two
}

// Errors of keys are those that queries of this norm may meet: of a score, ln(1 + e^2).
TEST(Qaq, ScoresKeepTheErrorOfKeys) {
  constexpr double kError = .1, kNorm = 4;
  const auto codec = codec_of("qaq(10, low=0, high=8, outliers=0)");
  const std::vector<float> weights(kKeyBlock, 0.0f);
  double squares = 0;
  int64_t n = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> x = uniform_page(seed);
    const auto page =
        codec->encode_seen(KvSide::kKeys, kDims, x.data(), {weights.data(), kNorm, kPositions});
    const std::vector<float> y = decoded(*codec, KvSide::kKeys, page);
    Random random(seed, 2);
    std::vector<double> q(kDims);
    double norm = 0;
    for (double& value : q) norm += std::pow(value = random.gaussian(), 2);
    for (int64_t p = 0; p < kKeyBlock; ++p, ++n) {
      double error = 0;
      for (int64_t c = 0; c < kDims; ++c) {
        const auto at = static_cast<size_t>(place_of(KvSide::kKeys, p, c));
        error += q[static_cast<size_t>(c)] * std::sqrt(kNorm / norm) *
                 (static_cast<double>(y[at]) - x[at]);
      }
      squares += error * error;
    }
  }
  const double allowed = std::sqrt(std::log1p(kError * kError));
  const double measured = std::sqrt(squares / static_cast<double>(n));
  EXPECT_LE(measured, allowed);
  EXPECT_GE(measured, allowed / 2.2);
}

TEST(Qaq, NarrowingDropsBitsAndNeverAddsAny) {
  const auto codec = codec_of("qaq(5, low=0, high=8)");
  std::vector<float> few(kKeyBlock, 1e-5f), many(kKeyBlock, .05f), mixed = many;
  for (size_t p = 0; p < mixed.size(); p += 3) mixed[p] = 1e-4f;
  const std::vector<float> x = uniform_page(5);
  const auto page_with = [&](const std::vector<float>& weights) {
    return codec->encode_seen(KvSide::kValues, kDims, x.data(), {weights.data(), 1, kPositions});
  };
  const auto narrowed = [&](const std::vector<std::byte>& page, const std::vector<float>& weights) {
    return codec->narrowed(KvSide::kValues, kDims, page.data(), {weights.data(), 1, kPositions});
  };
  const std::vector<std::byte> wide = page_with(many), narrow = narrowed(wide, mixed);
  EXPECT_TRUE(narrowed(wide, many).empty());  // as it is
  ASSERT_FALSE(narrow.empty());
  EXPECT_LT(narrow.size(), wide.size());
  EXPECT_EQ(*codec->size_of(kDims, narrow), static_cast<int64_t>(narrow.size()));
  EXPECT_TRUE(narrowed(narrow, many).empty());  // what is gone does not come back
  EXPECT_EQ(widths_of(narrow), widths_of(page_with(mixed)));
  // As good as if it had been coded so: halves of scales and centres are rounded once more.
  const std::vector<float> a = decoded(*codec, KvSide::kValues, narrow),
                           b = decoded(*codec, KvSide::kValues, page_with(mixed));
  double twice = 0, once = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    twice += std::pow(static_cast<double>(a[i]) - x[i], 2);
    once += std::pow(static_cast<double>(b[i]) - x[i], 2);
  }
  EXPECT_LT(twice, 1.05 * once);
  const std::vector<std::byte> least = narrowed(wide, few);
  for (const int width : widths_of(least)) EXPECT_EQ(width, 0);
  EXPECT_TRUE(codec_of("qaq(5, high=8, again=false)")
                  ->narrowed(KvSide::kValues, kDims, wide.data(), {few.data(), 1, kPositions})
                  .empty());
}

TEST(Qaq, OutliersStayWhatTheyAre) {
  const auto codec = codec_of("qaq(50, low=0, high=2, outliers=1)");
  const std::vector<float> weights(kKeyBlock, .01f);
  for (const KvSide side : kSides) {
    std::vector<float> x = uniform_page(6);
    std::vector<int64_t> places;
    for (int64_t p = 1; p < kKeyBlock; p += 2) places.push_back(place_of(side, p, p * 7 % kDims));
    for (const int64_t at : places) x[static_cast<size_t>(at)] = 32.0f + static_cast<float>(at % 8);
    std::vector<std::byte> page =
        codec->encode_seen(side, kDims, x.data(), {weights.data(), 100, kPositions});
    for (int pass = 0; pass < 2; ++pass) {
      const std::vector<float> y = decoded(*codec, side, page);
      for (const int64_t at : places) {
        EXPECT_NEAR(y[static_cast<size_t>(at)], x[static_cast<size_t>(at)], 1e-5);
      }
      const std::vector<float> none(kKeyBlock, 1e-9f);
      const auto narrow =
          codec->narrowed(side, kDims, page.data(), {none.data(), 1e-9, kPositions});
      if (!narrow.empty()) page = narrow;
    }
  }
}

TEST(Qaq, PagesThatDoNotFitAreRefused) {
  const auto codec = codec_of("qaq(10, high=4)");
  const std::vector<float> x = uniform_page(7), weights = rising_weights();
  std::vector<std::byte> page =
      codec->encode_seen(KvSide::kValues, kDims, x.data(), {weights.data(), 1, kPositions});
  const auto size = static_cast<int64_t>(page.size());
  page.resize(page.size() + 100);
  EXPECT_EQ(*codec->size_of(kDims, page), size);
  for (const int64_t n : {int64_t{0}, int64_t{31}, int64_t{40}, size - 1}) {
    EXPECT_FALSE(codec->size_of(kDims, std::span(page).first(static_cast<size_t>(n)))) << n;
  }
  page[3] = std::byte{0x50};
  EXPECT_FALSE(codec->size_of(kDims, page));
}

}  // namespace
}  // namespace quern
