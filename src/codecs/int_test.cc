// SPDX-License-Identifier: Apache-2.0
#include "codecs/int.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/float_types.h"
#include "base/random.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(Int, EveryFastDecoderHasTheBitsOfTheReference) {
  Random random(1);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 129, 300}) {
      for (const int64_t group : {int64_t{16}, int64_t{48}, int64_t{64}, n}) {
        if (group % 16 != 0 && group < n) continue;
        for (const bool is_symmetric : {true, false}) {
          // Exact allocations, so that a sanitizer sees any read past a row.
          std::vector<uint8_t> codes(static_cast<size_t>((n * bits + 7) / 8));
          std::vector<uint8_t> scales(static_cast<size_t>(2 * ((n + group - 1) / group)));
          std::vector<uint8_t> zeros(scales.size() / 2);
          for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.next());
          for (uint8_t& byte : zeros) byte = static_cast<uint8_t>(random.next());
          for (size_t g = 0; g < zeros.size(); ++g) {
            const uint16_t half = float_to_f16(static_cast<float>(random.gaussian()));
            std::memcpy(scales.data() + 2 * g, &half, 2);
          }
          const IntRow row{codes.data(), scales.data(), is_symmetric ? nullptr : zeros.data(), n,
                           group,        bits};
          std::vector<float> expected(static_cast<size_t>(n)), got(expected);
          int_decode_row_ref(row, expected.data());
          if (host_has(Isa::kAvx512)) {
            int_decode_row_avx512(row, got.data());
            EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
          }
          if (host_has(Isa::kAvx2)) {
            int_decode_row_avx2(row, got.data());
            EXPECT_EQ(got, expected) << bits << " bits, n " << n << ", group " << group;
          }
        }
      }
    }
  }
}

TEST(Int, NumbersOnTheGridComeBackExactly) {
  Matrix<float> w(4, 64);
  Random random(3);
  for (int64_t i = 0; i < 4 * 64; ++i) {
    w.data()[i] = 0.125f * (static_cast<float>(random.below(15)) - 7);
  }
  for (int64_t i = 0; i < 4; ++i) w(i, 5) = 0.125f * 7;  // the end of the grid is met
  EXPECT_EQ(coding_error("int(4, group=64)", w), 0);
}

TEST(Int, ErrorFallsWithEveryBitAndWithSmallerGroups) {
  const Matrix<float> w = gaussian_matrix(32, 1024, 11);
  double last = 1e9;
  for (int bits = 2; bits <= 8; ++bits) {
    const double error = coding_error(fmt::format("int({}, group=64)", bits), w);
    EXPECT_LT(error, last / 2) << bits;
    last = error;
  }
  EXPECT_LT(coding_error("int(4, group=32)", w), coding_error("int(4, group=128)", w));
}

TEST(Int, ClipSearchNeverLosesByItsOwnMeasure) {
  const Matrix<float> w = gaussian_matrix(32, 512, 11);
  for (const int bits : {2, 3, 4}) {
    EXPECT_LE(coding_error(fmt::format("int({}, clip=search, norm=2)", bits), w),
              coding_error(fmt::format("int({})", bits), w));
  }
}

TEST(Int, GridsDifferAsNamed) {
  // One row whose largest magnitude is 1: scales follow from the definition.
  Matrix<float> w(1, 2);
  w(0, 0) = -1;
  w(0, 1) = 0.4f;
  const std::pair<const char*, double> cases[] = {{"int(4, group=0)", 1.0 / 7},
                                                  {"int(4, group=0, grid=half)", 1.0 / 7.5},
                                                  {"int(4, group=0, grid=signed)", 1.0 / 8},
                                                  {"int(4, group=0, sym=false)", 1.4 / 15}};
  for (const auto& [text, scale] : cases) {
    const auto codec = *make_codec(text);
    CodedMatrix codes = *CodedMatrix::create(*codec, 1, 2);
    codec->fit(w.view(), {}, 0, 0, codes.mutable_view());
    uint16_t half;
    std::memcpy(&half, codes.plane(1).data(), 2);
    EXPECT_EQ(half, float_to_f16(static_cast<float>(scale))) << text;
  }
}

}  // namespace
}  // namespace quern
