// SPDX-License-Identifier: Apache-2.0
#include "codecs/pulses.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/random.h"
#include "codecs/bit_stream.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(Pulses, FastDecoderHasTheBitsOfTheReference) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  Random random(1);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t dim : {8, 16, 24, 40, 64, 128}) {
      for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257}) {
        // Exact allocations, so that a sanitizer sees any read past the row.
        std::vector<uint8_t> codes(static_cast<size_t>(stream_bytes(n, bits)));
        std::vector<float> steps(static_cast<size_t>((n + dim - 1) / dim));
        for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
        for (float& step : steps) step = static_cast<float>(random.gaussian());
        const PulsesRow row{codes.data(), steps.data(), bits, dim, n};
        std::vector<float> expected(static_cast<size_t>(n)), got(expected);
        pulses_decode_ref(row, expected.data());
        pulses_decode_avx512(row, got.data());
        EXPECT_EQ(0, std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)))
            << bits << " bits, dim " << dim << ", n " << n;
      }
    }
  }
}

TEST(Pulses, CodesAreAsWideAsTheLargestPulseNeeds) {
  const auto form_with = [](int16_t largest) {
    return pulses_form(5, 40, 16, Reading::kValues, [&](int64_t row, int16_t* y, float* steps) {
      for (int j = 0; j < 40; ++j) y[j] = static_cast<int16_t>(j % 3 - 1);
      if (row == 3) y[39] = largest;
      for (int g = 0; g < 3; ++g) steps[g] = 0.5f + static_cast<float>(g);
    });
  };
  for (const auto& [largest, bits] : {std::pair<int16_t, int>{1, 2},
                                      {2, 3},
                                      {-3, 3},
                                      {4, 4},
                                      {7, 4},
                                      {-8, 5},
                                      {64, 8},
                                      {-127, 8}}) {
    const auto form = form_with(largest);
    ASSERT_NE(form, nullptr);
    EXPECT_EQ(form->codes.n_bytes(), 5u * (static_cast<size_t>(5 * bits) + 3 * sizeof(float)));
    Matrix<float> w(5, 40);
    form->decoder->decode(form->codes.view(), 0, 5, w.data());
    for (int64_t i = 0; i < 5; ++i) {
      for (int64_t j = 0; j < 40; ++j) {
        const int64_t y = i == 3 && j == 39 ? largest : j % 3 - 1;
        EXPECT_EQ(w(i, j), (0.5f + static_cast<float>(j / 16)) * static_cast<float>(y));
      }
    }
  }
  EXPECT_EQ(form_with(128), nullptr);
}

// Levels and scales of panels multiply to what decode gives, to the bit.
TEST(Pulses, PanelsAreExact) {
  for (const char* text : {"pvq(2)", "pvq(3)", "pvq(4, dim=16)"}) {
    constexpr int64_t kRows = 16, kCols = 256;
    const auto codec = *make_codec(text);
    const auto form = codec->runtime_form(
        code_matrix(*codec, gaussian_matrix(kRows, kCols, 3)).view(), Reading::kPanels);
    ASSERT_NE(form, nullptr);
    const int64_t group = form->decoder->panel_tile(kCols).group;
    Matrix<float> w(kRows, kCols);
    form->decoder->decode(form->codes.view(), 0, kRows, w.data());
    std::vector<uint8_t> levels(kRows * kCols);
    std::vector<float> scales(static_cast<size_t>(kRows * kCols / group));
    form->decoder->decode_panels(form->codes.view(), 0, kRows, 0, kCols,
                                 {levels.data(), scales.data(), kRows * kCols, 0});
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        const int y = levels[static_cast<size_t>((j / 4 * kRows + i) * 4 + j % 4)] - kPanelZero;
        ASSERT_EQ(scales[static_cast<size_t>(j / group * kRows + i)] * static_cast<float>(y),
                  w(i, j))
            << text;
      }
    }
  }
}

TEST(Pulses, PointsOfManyPulsesStayAsTheyAre) {
  const auto codec = *make_codec("pvq(dim=2, pulses=255, gain_bits=2)");
  for (const Reading reading : {Reading::kValues, Reading::kPanels}) {
    EXPECT_EQ(codec->runtime_form(code_matrix(*codec, gaussian_matrix(8, 32, 2)).view(), reading),
              nullptr);
  }
}

}  // namespace
}  // namespace quern
