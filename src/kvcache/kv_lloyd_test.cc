// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codecs/level_tables.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

// Number i of position p.
size_t at(KvSide side, int64_t d_head, int64_t p, int64_t i) {
  return static_cast<size_t>(side == KvSide::kKeys ? i * kKeyBlock + p : p * d_head + i);
}

double energy(const std::vector<float>& x, KvSide side, int64_t d_head, int64_t p) {
  double sum = 0;
  for (int64_t i = 0; i < d_head; ++i) sum += std::pow(x[at(side, d_head, p, i)], 2.0);
  return sum;
}

// D of the table of Lloyd and Max where the scale is fitted; 2 - 2 sqrt(1 - D) where it keeps the
// norm, since E[x c] = E[c c] = 1 - D.
TEST(KvLloyd, ErrorsOnAGaussianAreThoseOfTheory) {
  constexpr double kDistortion[] = {.3634, .1175, .03454, .009497};
  constexpr int64_t kDims = 256;
  for (int bits = 1; bits <= 4; ++bits) {
    const double d = kDistortion[bits - 1];
    for (const bool is_fitted : {true, false}) {
      const auto codec =
          codec_of(fmt::format("lloyd({}, scale={})", bits, is_fitted ? "least" : "norm"));
      for (const KvSide side : kSides) {
        double error = 0, total = 0;
        for (uint64_t seed = 0; seed < 4; ++seed) {
          const std::vector<float> x = gaussian_page(kDims, seed);
          const std::vector<float> y = coded(*codec, side, kDims, x);
          for (size_t i = 0; i < x.size(); ++i) {
            error += std::pow(static_cast<double>(x[i]) - y[i], 2);
            total += std::pow(x[i], 2.0);
          }
        }
        const double expected = is_fitted ? d : 2 - 2 * std::sqrt(1 - d);
        EXPECT_NEAR(error / total, expected, .02 * expected) << codec->spec();
      }
    }
  }
}

// But for the rounding of a scale to a half.
TEST(KvLloyd, NormsAreKept) {
  for (const char* text : {"lloyd(1)", "lloyd(2)", "lloyd(3)", "lloyd(4)"}) {
    for (const KvSide side : kSides) {
      std::vector<float> x = gaussian_page(80, 3);
      for (int64_t p = 0; p < kKeyBlock; ++p) {  // norms far apart
        for (int64_t i = 0; i < 80; ++i) {
          x[at(side, 80, p, i)] *= std::exp2(static_cast<float>(p % 16 - 8));
        }
      }
      const std::vector<float> y = coded(*codec_of(text), side, 80, x);
      for (int64_t p = 0; p < kKeyBlock; ++p) {
        EXPECT_NEAR(std::sqrt(energy(y, side, 80, p) / energy(x, side, 80, p)), 1, 0x1p-11 + 1e-6);
      }
    }
  }
}

TEST(KvLloyd, ZeroStaysZero) {
  const std::vector<float> zero(64 * kKeyBlock, 0.0f);
  for (const char* text : {"lloyd(1)", "lloyd(4)", "lloyd(3, scale=least)"}) {
    for (const KvSide side : kSides) {
      for (const float value : coded(*codec_of(text), side, 64, zero)) EXPECT_EQ(value, 0) << text;
    }
  }
}

// The norm of such a head is past the largest half; its scale is not, until the numbers come near.
TEST(KvLloyd, LargeNumbersAreCoded) {
  for (const char* text : {"lloyd(1)", "lloyd(2)", "lloyd(3)", "lloyd(4, scale=least)"}) {
    const std::vector<float> large(128 * kKeyBlock, -40000.0f), most(large.size(), 65504.0f);
    for (const KvSide side : kSides) {
      for (const float value : coded(*codec_of(text), side, 128, large)) {
        ASSERT_NEAR(value, -40000.0f, 20) << text;
      }
      for (const float value : coded(*codec_of(text), side, 128, most)) {
        ASSERT_TRUE(value > 49000 && value < 65600) << text << " " << value;
      }
    }
  }
}

// What is no number in one position stays no number there and does not spread.
TEST(KvLloyd, NoNumbersStayInTheirPosition) {
  for (const KvSide side : kSides) {
    std::vector<float> x = gaussian_page(64, 2);
    const std::vector<float> want = coded(*codec_of("lloyd(3)"), side, 64, x);
    x[at(side, 64, 5, 7)] = std::nanf("");
    x[at(side, 64, 9, 0)] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = coded(*codec_of("lloyd(3)"), side, 64, x);
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      for (int64_t i = 0; i < 64; ++i) {
        const size_t k = at(side, 64, p, i);
        if (p == 5 || p == 9) {
          EXPECT_FALSE(std::isfinite(y[k])) << p;
        } else {
          EXPECT_EQ(y[k], want[k]) << p;
        }
      }
    }
  }
}

// A head within a turned page and along a row of it: the same numbers.
TEST(KvLloyd, KeysAndValuesAreCodedAlike) {
  const auto codec = codec_of("lloyd(3)");
  const std::vector<float> values = gaussian_page(80, 4);
  std::vector<float> keys(values.size());
  for (int64_t p = 0; p < kKeyBlock; ++p) {
    for (int64_t i = 0; i < 80; ++i) {
      keys[at(KvSide::kKeys, 80, p, i)] = values[at(KvSide::kValues, 80, p, i)];
    }
  }
  const std::vector<float> a = coded(*codec, KvSide::kKeys, 80, keys);
  const std::vector<float> b = coded(*codec, KvSide::kValues, 80, values);
  for (int64_t p = 0; p < kKeyBlock; ++p) {
    for (int64_t i = 0; i < 80; ++i) {
      ASSERT_EQ(a[at(KvSide::kKeys, 80, p, i)], b[at(KvSide::kValues, 80, p, i)]);
    }
  }
}

}  // namespace
}  // namespace quern
