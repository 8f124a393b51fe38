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

// Whole codecs, since a product has everything in it; widths that end within lines and groups.
TEST(PanelProducts, ThatSpareTheLevelsMemoryHaveTheBitsOfThoseThatDoNot) {
  constexpr int64_t kRows = 40;
  int n_spared = 0;
  for (const char* text :
       {"int(2)", "int(3)", "int(3, group=64)", "int(4, group=32)", "int(5)", "int(6)", "int(8)",
        "int(4, group=64, sym=false)", "table(nf, 4)", "float(e4m3)", "ternary(64)", "binary",
        "pvq(2)", "e8p", "e8p(3)", "e8p(4)"}) {
    for (const int64_t n_in : {40, 64, 192, 320, 1024, 2080}) {
      const auto made = make_codec(text);
      ASSERT_TRUE(made) << text;
      const CodedMatrix codes = code_matrix(**made, gaussian_matrix(kRows, n_in, 1));
      const auto form = (*made)->runtime_form(codes.view(), Reading::kPanels);
      if (form == nullptr) continue;
      const CodesView view = form->codes.view();
      const PanelTile tile = form->decoder->panel_tile(n_in);
      const int64_t n_groups = ceil_div(n_in, tile.group), cols = n_groups * tile.group;
      Random random(2);
      std::vector<int8_t> x(static_cast<size_t>(cols));
      std::vector<float> x_scales;
      std::vector<int32_t> offsets;
      for (int64_t g = 0; g < n_groups; ++g) {
        int32_t sum = 0;
        for (int64_t j = g * tile.group; j < std::min(n_in, (g + 1) * tile.group); ++j) {
          x[static_cast<size_t>(j)] =
              static_cast<int8_t>(static_cast<int>(random.below(255)) - 127);
          sum += x[static_cast<size_t>(j)];
        }
        x_scales.push_back(static_cast<float>(random.uniform()));
        offsets.push_back(-static_cast<int32_t>(kPanelZero) * sum);
      }
      const Int8Rows rows{x.data(), x_scales.data(), offsets.data(), 1, n_groups, tile.group, cols};
      std::vector<float> got(kRows, -1), want(kRows);
      if (!form->decoder->dot_panels(view, 0, kRows, rows, got.data())) continue;
      ++n_spared;
      const int64_t padded = round_up(kRows, tile.rows);
      AlignedVector<uint8_t> levels(static_cast<size_t>(padded * cols));
      AlignedVector<float> scales(static_cast<size_t>(padded * n_groups));
      const int64_t stride = cols * kPanelRows, scales_stride = n_groups * kPanelRows;
      form->decoder->decode_panels(view, 0, kRows, 0, n_in,
                                   {levels.data(), scales.data(), stride, scales_stride});
      kernels().panel_dot({levels.data(), scales.data(), stride, scales_stride, kRows, 0, n_groups},
                          rows, want.data(), kRows);
      EXPECT_EQ(got, want) << text << ", " << n_in << " columns";
    }
  }
  EXPECT_TRUE(kernels().isa == Isa::kRef || n_spared > 40) << n_spared;
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
