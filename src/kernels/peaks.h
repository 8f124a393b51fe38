// SPDX-License-Identifier: Apache-2.0
// Loops that nothing but the machine slows down: its limits, beside which kernels are judged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace quern {

// Multiply-adds out of registers.
struct PeakLoop {
  std::string_view name;  // "fp32_ref", "fp32_avx2", "fp32_avx512", "int8_vnni", "int8_amx", ...
  double operations;      // of one turn; a multiply-add is two
  void (*run)(int64_t n_turns);  // on the calling thread
};

// Those this host can run, whatever QUERN_ISA says.
std::vector<PeakLoop> peak_loops();

// Memory, as kStreams interleaved streams with prefetch. `n` bytes, a multiple of kStreamGrain;
// src and dst start on 64-byte lines. The copy passes caches by where the ISA can.
struct StreamLoops {
  void (*read)(const std::byte* src, size_t n);
  void (*copy)(const std::byte* src, size_t n, std::byte* dst);
};
constexpr size_t kStreams = 4, kStreamGrain = kStreams * 64;

StreamLoops stream_loops();

// One per implementation; they may be called on hosts that have it.
void peak_fp32_avx2(int64_t n_turns);    // 12 chains of 8
void peak_fp32_avx512(int64_t n_turns);  // 24 chains of 16
void peak_int8_vnni(int64_t n_turns);    // 24 chains of 64
void peak_int8_amx(int64_t n_turns);     // 4 tiles of 16 x 16 x 64
void peak_bf16_amx(int64_t n_turns);     // 4 tiles of 16 x 16 x 32
void read_streams_avx2(const std::byte* src, size_t n);
void copy_streams_avx2(const std::byte* src, size_t n, std::byte* dst);

}  // namespace quern
