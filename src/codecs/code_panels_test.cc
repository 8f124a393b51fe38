// SPDX-License-Identifier: Apache-2.0
#include "codecs/code_panels.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/random.h"
#include "codecs/bit_stream.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

TEST(CodePanels, FastOnesHaveTheBytesOfTheReference) {
  Random random(1);
  const auto bytes_of = [&](int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    return bytes;
  };
  constexpr std::pair<int, int> kBits[] = {{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0},
                                           {7, 0}, {8, 0}, {4, 1}, {4, 2}, {4, 3}};
  for (const auto& [low_bits, high_bits] : kBits) {
    for (const int64_t n_in : {1, 7, 16, 33, 64, 100, 128, 300, 640}) {
      for (const int64_t n_rows : {1, 5, 16}) {
        // Exact allocations, so that a sanitizer sees any read past the last row.
        const auto low = bytes_of(n_rows * stream_bytes(n_in, low_bits));
        const auto high = bytes_of(n_rows * stream_bytes(n_in, high_bits));
        const CodeRows codes{low.data(), high_bits > 0 ? high.data() : nullptr, low_bits, high_bits,
                             n_in};
        std::vector<uint8_t> want(static_cast<size_t>(round_up<int64_t>(n_in, 16) * 16));
        auto got = want;
        code_panel_ref(codes, 0, n_rows, want.data());
        for (const auto& [isa, write] :
             {std::pair{Isa::kAvx2, &code_panel_avx2}, {Isa::kAvx512, &code_panel_avx512}}) {
          if (!host_has(isa)) continue;
          write(codes, 0, n_rows, got.data());
          for (size_t i = 0; i < want.size(); ++i) {
            const auto column = static_cast<int64_t>(i / 64 * 4 + i % 4);
            if (column >= n_in || static_cast<int64_t>(i / 4 % 16) >= n_rows) continue;
            ASSERT_EQ(got[i], want[i]) << isa_name(isa) << ", " << low_bits << " and " << high_bits
                                       << " bits, " << n_in << " columns, byte " << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace quern
