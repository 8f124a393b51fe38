// SPDX-License-Identifier: Apache-2.0
#include "kernels/intrinsics.h"
#include "kernels/peaks.h"

namespace quern {
namespace {

constexpr size_t kAhead = 1024;  // bytes of a stream that prefetch runs before the loads

__m256i load(const std::byte* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

// A prefetch past the end of the bytes is no access.
void prefetch(const std::byte* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
}

// Keeps the compiler from knowing a value: equal chains would become one.
template <class T>
void hide(T& value) {
  asm volatile("" : "+x"(value));
}

}  // namespace

void peak_fp32_avx2(int64_t n_turns) {
  __m256 sum[12];
#pragma GCC unroll 12
  for (auto& s : sum) hide(s = _mm256_set1_ps(1.0f));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int64_t i = 0; i < n_turns; ++i) {
#pragma GCC unroll 12
    for (auto& s : sum) s = _mm256_fmadd_ps(s, a, b);
  }
#pragma GCC unroll 12
  for (auto& s : sum) hide(s);
}

void read_streams_avx2(const std::byte* src, size_t n) {
  const size_t part = n / kStreams;
  __m256i sum[kStreams];
  for (auto& s : sum) s = _mm256_setzero_si256();
  for (size_t i = 0; i < part; i += 64) {
#pragma GCC unroll 4
    for (size_t s = 0; s < kStreams; ++s) {
      const std::byte* line = src + s * part + i;
      prefetch(line);
      sum[s] = _mm256_xor_si256(sum[s], _mm256_xor_si256(load(line), load(line + 32)));
    }
  }
#pragma GCC unroll 4
  for (auto& s : sum) hide(s);
}

void copy_streams_avx2(const std::byte* src, size_t n, std::byte* dst) {
  const size_t part = n / kStreams;
  for (size_t i = 0; i < part; i += 64) {
#pragma GCC unroll 4
    for (size_t s = 0; s < kStreams; ++s) {
      const size_t at = s * part + i;
      prefetch(src + at);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(dst + at), load(src + at));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(dst + at + 32), load(src + at + 32));
    }
  }
  _mm_sfence();
}

}  // namespace quern
