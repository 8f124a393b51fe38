// SPDX-License-Identifier: Apache-2.0
#include "kernels/peaks.h"

#include <cstring>

#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int kRefChains = 32;

void peak_fp32_ref(int64_t n_turns) {
  float sum[kRefChains];
  for (float& s : sum) {
    s = 1;
    asm volatile("" : "+m"(s));  // equal chains would become one
  }
  for (int64_t i = 0; i < n_turns; ++i) {
    for (float& s : sum) s = s * 0.999f + 0.001f;
  }
  for (float& s : sum) asm volatile("" : "+m"(s));
}

void read_streams_ref(const std::byte* src, size_t n) {
  uint64_t sum[8] = {}, words[8];
  for (size_t i = 0; i < n; i += sizeof(words)) {
    std::memcpy(words, src + i, sizeof(words));
    for (size_t l = 0; l < 8; ++l) sum[l] ^= words[l];
  }
  for (uint64_t& s : sum) asm volatile("" : "+r"(s));
}

void copy_streams_ref(const std::byte* src, size_t n, std::byte* dst) { std::memcpy(dst, src, n); }

}  // namespace

std::vector<PeakLoop> peak_loops() {
  std::vector<PeakLoop> loops = {{"fp32_ref", 2.0 * kRefChains, peak_fp32_ref}};
  if (host_has(Isa::kAvx2)) loops.push_back({"fp32_avx2", 2.0 * 12 * 8, peak_fp32_avx2});
  if (host_has(Isa::kAvx512)) {
    loops.push_back({"fp32_avx512", 2.0 * 24 * 16, peak_fp32_avx512});
    loops.push_back({"int8_vnni", 2.0 * 24 * 64, peak_int8_vnni});
  }
  if (!host_has(Isa::kAmx)) return loops;
  loops.push_back({"bf16_amx", 2.0 * 4 * 16 * 16 * 32, peak_bf16_amx});
  loops.push_back({"int8_amx", 2.0 * 4 * 16 * 16 * 64, peak_int8_amx});
  return loops;
}

StreamLoops stream_loops() {
  if (host_has(Isa::kAvx2)) return {read_streams_avx2, copy_streams_avx2};
  return {read_streams_ref, copy_streams_ref};
}

}  // namespace quern
