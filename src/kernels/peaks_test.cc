// SPDX-License-Identifier: Apache-2.0
#include "kernels/peaks.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>

#include "base/random.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

// A loop whose chains the compiler made one, or dropped, would be faster than any processor: four
// instructions a cycle at 6 GHz.
TEST(Peaks, NoLoopIsFasterThanItsInstructionsCanBe) {
  const std::map<std::string_view, double> per_instruction = {
      {"fp32_ref", 4},    {"fp32_avx2", 16},       {"fp32_avx512", 32},
      {"int8_vnni", 128}, {"bf16_amx", 16 * 1024}, {"int8_amx", 32 * 1024}};
  for (const PeakLoop& loop : peak_loops()) {
    loop.run(0);
    const int64_t n_turns = 200000;
    const auto start = std::chrono::steady_clock::now();
    loop.run(n_turns);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    EXPECT_LT(loop.operations * static_cast<double>(n_turns) / seconds,
              per_instruction.at(loop.name) * 4 * 6e9)
        << loop.name;
  }
}

TEST(Peaks, EveryIsaOfTheHostHasItsLoop) {
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    int n_found = 0;
    for (const PeakLoop& loop : peak_loops()) {
      n_found += loop.name == "fp32_" + std::string(isa_name(isa)) ? 1 : 0;
    }
    EXPECT_EQ(n_found, host_has(isa) ? 1 : 0) << isa_name(isa);
  }
}

TEST(Peaks, StreamsCopyEveryByteAndNoMore) {
  Random random(1);
  for (const size_t n : {kStreamGrain, 3 * kStreamGrain, size_t{1} << 16}) {
    AlignedVector<std::byte> src(n), dst(n + 64, std::byte{7});
    for (std::byte& byte : src) byte = static_cast<std::byte>(random.next());
    stream_loops().read(src.data(), n);
    stream_loops().copy(src.data(), n, dst.data());
    EXPECT_TRUE(std::equal(src.begin(), src.end(), dst.begin())) << n;
    for (size_t i = n; i < dst.size(); ++i) EXPECT_EQ(dst[i], std::byte{7});
  }
}

}  // namespace
}  // namespace quern
