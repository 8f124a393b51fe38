// SPDX-License-Identifier: Apache-2.0
#include "codecs/bit_planes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "codecs/magnitudes.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(BitPlanes, FastDecodersHaveTheBitsOfTheReference) {
  Random random(1);
  for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257}) {
    for (const int64_t group : {int64_t{16}, int64_t{48}, n}) {
      for (int n_planes = 1; n_planes <= kMostBitPlanes; ++n_planes) {
        // Exact allocations, so that a sanitizer sees any read past them.
        std::vector<std::vector<uint8_t>> planes(static_cast<size_t>(n_planes));
        BitPlaneRow row{{}, n_planes, nullptr, nullptr, n, group};
        for (int p = 0; p < n_planes; ++p) {
          auto& plane = planes[static_cast<size_t>(p)];
          plane.resize(static_cast<size_t>((n + 7) / 8));
          for (uint8_t& byte : plane) byte = static_cast<uint8_t>(random.next());
          row.planes[p] = plane.data();
        }
        std::vector<float> levels(static_cast<size_t>(((n + group - 1) / group) << n_planes));
        std::vector<float> factors(static_cast<size_t>(n));
        for (float& level : levels) level = static_cast<float>(random.gaussian());
        for (float& factor : factors) factor = static_cast<float>(random.uniform());
        row.levels = levels.data();
        for (const bool has_factors : {false, true}) {
          row.factors = has_factors ? factors.data() : nullptr;
          std::vector<float> expected(static_cast<size_t>(n)), got(expected);
          bit_planes_decode_row_ref(row, expected.data());
          if (host_has(Isa::kAvx2)) {
            bit_planes_decode_row_avx2(row, got.data());
            EXPECT_EQ(got, expected) << "AVX2, n " << n << ", " << n_planes << " planes";
          }
          if (host_has(Isa::kAvx512)) {
            bit_planes_decode_row_avx512(row, got.data());
            EXPECT_EQ(got, expected) << "AVX-512, n " << n << ", " << n_planes << " planes";
          }
        }
      }
    }
  }
}

TEST(BitPlanes, FastPanelsHaveTheBytesOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(21);
  const auto bytes_of = [&](int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    return bytes;
  };
  for (const int64_t n_cols : {1, 7, 16, 17, 33, 100, 500, 512, 520, 1100}) {
    for (const int64_t group : {int64_t{16}, int64_t{48}, n_cols}) {
      for (const int64_t n_rows : {1, 5, 16}) {
        for (int n_planes = 1; n_planes <= kMostBitPlanes; ++n_planes) {
          // The last byte is the last of its buffer, so that a sanitizer sees what reads further.
          const int64_t n_bytes = (n_cols + 7) / 8, stride = n_bytes + 3;
          const auto first = bytes_of((n_rows - 1) * stride + n_bytes);
          const auto second = bytes_of((n_rows - 1) * stride + n_bytes), third = bytes_of(n_bytes);
          const auto tables = bytes_of((n_cols + group - 1) / group * 64 * (n_planes > 2 ? 2 : 1));
          const BitPanel rows{{first.data(), second.data(), third.data()},
                              n_planes,
                              stride,
                              tables.data(),
                              n_rows,
                              n_cols,
                              group};
          const int64_t n = (n_cols + 15) / 16 * 256;
          std::vector<uint8_t> want(static_cast<size_t>(n)), got = want;
          bit_panel_ref(rows, want.data());
          bit_panel_avx512(rows, got.data());
          for (int64_t i = 0; i < n; ++i) {
            if (i / 64 * 4 + i % 4 >= n_cols || i / 4 % 16 >= n_rows) continue;
            ASSERT_EQ(got[static_cast<size_t>(i)], want[static_cast<size_t>(i)])
                << n_planes << " planes, " << n_cols << " columns, byte " << i;
          }
        }
      }
    }
  }
}

TEST(BitPlanes, PanelsOfOneMagnitudeAreExact) {
  for (const char* text : {"binary", "binary(0)", "binary(48)", "ternary", "ternary(0)",
                           "ternary(48, packing=planes)", "ternary(scope=matrix)"}) {
    const auto codec = *make_codec(text);
    constexpr int64_t kRows = 5, kCols = 200;
    const Matrix<float> w = gaussian(kRows, kCols, 5);
    const CodedMatrix codes = code_matrix(*codec, w);
    const Matrix<float> w_hat = decode_matrix(*codec, codes);
    const auto form = codec->runtime_form(codes.view(), Reading::kPanels);
    const Decoder& decoder = form == nullptr ? static_cast<const Decoder&>(*codec) : *form->decoder;
    const CodesView view = form == nullptr ? codes.view() : form->codes.view();
    const int64_t group = decoder.panel_tile(kCols).group, n_groups = (kCols + group - 1) / group;
    std::vector<uint8_t> levels(static_cast<size_t>(n_groups * group * 16));
    std::vector<float> scales(static_cast<size_t>(n_groups * 16));
    decoder.decode_panels(view, 0, kRows, 0, kCols, {levels.data(), scales.data(), 0, 0});
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        const int level = levels[static_cast<size_t>((j / 4 * 16 + i) * 4 + j % 4)] - 128;
        const float scale = scales[static_cast<size_t>(j / group * 16 + i)];
        ASSERT_EQ(w_hat(i, j), scale * static_cast<float>(level)) << text;
      }
    }
  }
}

TEST(BitPlanes, MoreGroupsThanCanBeCountedAreDeclined) {
  for (const char* text : {"ternary(1)", "binary(1)", "billm(1)", "dual(1)"}) {
    const auto codec = *make_codec(text);
    EXPECT_FALSE(codec->planes(int64_t{1} << 31, int64_t{1} << 31)) << text;
    EXPECT_TRUE(codec->planes(1024, 1024)) << text;
  }
}

double loss_of(const std::vector<WeighedValue>& values, const std::vector<double>& levels) {
  double loss = 0;
  for (const auto& [value, weight] : values) {
    double nearest = HUGE_VAL;
    for (const double level : levels) nearest = std::min(nearest, std::abs(value - level));
    loss += weight * nearest * nearest;
  }
  return loss;
}

std::vector<WeighedValue> random_values(size_t n, Random& random) {
  std::vector<WeighedValue> values(n);
  for (WeighedValue& v : values) v = {random.gaussian(), random.uniform() + 0.01};
  return values;
}

TEST(Magnitudes, NoOtherPairIsBetter) {
  Random random(2);
  for (const size_t n : {1u, 2u, 3u, 7u, 20u}) {
    const std::vector<WeighedValue> values = random_values(n, random);
    for (const InnerMagnitude kind : {InnerMagnitude::kFree, InnerMagnitude::kZero}) {
      std::vector<WeighedValue> sorted = values;
      const MagnitudeSplit split = split_magnitudes(sorted, kind);
      const auto loss = [&](double inner, double outer) {
        return loss_of(values, kind == InnerMagnitude::kFree
                                   ? std::vector<double>{inner, -inner, outer, -outer}
                                   : std::vector<double>{0, outer, -outer});
      };
      EXPECT_NEAR(split.loss, loss(split.inner, split.outer), 1e-12);
      for (double outer = 0; outer < 4; outer += 0.05) {
        for (double inner = 0; inner <= outer; inner += 0.05) {
          EXPECT_LE(split.loss, loss(inner, outer) + 1e-12) << n << ": " << inner << ", " << outer;
        }
      }
    }
  }
}

TEST(Magnitudes, SumsAreThoseOfTheNearestLevels) {
  Random random(3);
  const std::vector<WeighedValue> values = random_values(50, random);
  const SortedValues sorted(values);
  for (int trial = 0; trial < 20; ++trial) {
    std::array<double, 4> levels;
    for (double& level : levels) level = random.gaussian();
    const LevelSums sums = sorted.sums(levels);
    EXPECT_NEAR(sums.loss, loss_of(values, {levels.begin(), levels.end()}), 1e-12);
    for (size_t c = 0; c < 4; ++c) {
      double weight = 0, sum = 0;
      for (const WeighedValue& v : values) {
        bool is_nearest = true;
        for (const double level : levels) {
          is_nearest &= std::abs(v.value - levels[c]) <= std::abs(v.value - level);
        }
        weight += is_nearest ? v.weight : 0;
        sum += is_nearest ? v.weight * v.value : 0;
      }
      EXPECT_NEAR(sums.weight[c], weight, 1e-12);
      EXPECT_NEAR(sums.sum[c], sum, 1e-12);
    }
  }
}

}  // namespace
}  // namespace quern
