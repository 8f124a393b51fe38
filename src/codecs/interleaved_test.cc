// SPDX-License-Identifier: Apache-2.0
#include "codecs/interleaved.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/random.h"
#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(Interleaved, FastOnesHaveTheBytesOfTheReference) {
  Random random(1);
  const auto bytes_of = [&](int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    return bytes;
  };
  constexpr std::pair<int, int> kWidths[] = {{1, 0}, {2, 0}, {2, 1}, {4, 0},
                                             {4, 1}, {4, 2}, {8, 0}};
  for (const auto& [low_bits, high_bits] : kWidths) {
    for (const int64_t n_quads : {4, 8, 12, 16, 28, 64}) {
      const auto low = bytes_of(round_up<int64_t>(n_quads, 16) * 8 * low_bits);
      const auto high = bytes_of(round_up<int64_t>(n_quads, 16) * 8 * high_bits);
      auto levels = bytes_of(256);
      const unsigned mask = (1u << (low_bits + high_bits)) - 1;
      const bool is_level = low_bits == 8 && n_quads == 12;
      for (unsigned i = 0; i < 256; ++i) {
        levels[i] = is_level ? static_cast<uint8_t>(i) : levels[i & mask];
      }
      for (const int64_t group : {0, 16, 48, 64, 1 << 20}) {
        const auto zeros = bytes_of(group == 0 ? 0 : ceil_div(4 * n_quads, group) * kPanelRows);
        const InterleavedPanel panel{low.data(),
                                     high_bits > 0 ? high.data() : nullptr,
                                     group > 0 ? zeros.data() : nullptr,
                                     levels.data(),
                                     low_bits,
                                     high_bits,
                                     group,
                                     is_level};
        std::vector<uint8_t> want(static_cast<size_t>(64 * n_quads)), got(want);
        interleaved_levels_ref(panel, n_quads, want.data());
        for (const auto& [isa, write] : {std::pair{Isa::kAvx2, &interleaved_levels_avx2},
                                         {Isa::kAvx512, &interleaved_levels_avx512}}) {
          if (!host_has(isa)) continue;
          write(panel, n_quads, got.data());
          EXPECT_EQ(got, want) << isa_name(isa) << " " << low_bits << " + " << high_bits
                               << " bits, " << n_quads << " quads, group " << group;
        }
      }
    }
  }
}

TEST(Interleaved, TakesTheBytesOfTheCodes) {
  for (const auto& [text, bits] : {std::pair{"int(2, group=64)", 2.25},
                                   {"int(3, group=64, sym=false)", 3.375},
                                   {"int(4)", 4.125},
                                   {"int(8)", 8.125},
                                   {"table(nf, 4)", 4.25},
                                   {"ternary(64)", 2.25},
                                   {"ternary(64, packing=planes)", 2.25},
                                   {"float(e2m3)", 6.125}}) {
    const auto codec = *make_codec(text);
    const CodedMatrix codes = code_matrix(*codec, gaussian_matrix(32, 256, 1));
    const auto form = codec->runtime_form(codes.view(), Reading::kPanels);
    ASSERT_NE(form, nullptr) << text;
    EXPECT_EQ(8.0 * static_cast<double>(form->codes.n_bytes()), bits * 32 * 256) << text;
    EXPECT_EQ(codec->runtime_form(codes.view(), Reading::kValues), nullptr);
  }
}

}  // namespace
}  // namespace quern
