// SPDX-License-Identifier: Apache-2.0
#include "kernels/intrinsics.h"
#include "kernels/peaks.h"

namespace quern {
namespace {

// Keeps the compiler from knowing a value: equal chains would become one.
template <class T>
void hide(T& value) {
  asm volatile("" : "+v"(value));
}

}  // namespace

// Two units of four cycles' latency need eight chains; 24 leave room for slower ones.
void peak_fp32_avx512(int64_t n_turns) {
  __m512 sum[24];
#pragma GCC unroll 24
  for (auto& s : sum) hide(s = _mm512_set1_ps(1.0f));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t i = 0; i < n_turns; ++i) {
#pragma GCC unroll 24
    for (auto& s : sum) s = _mm512_fmadd_ps(s, a, b);
  }
#pragma GCC unroll 24
  for (auto& s : sum) hide(s);
}

void peak_int8_vnni(int64_t n_turns) {
  __m512i sum[24];
#pragma GCC unroll 24
  for (auto& s : sum) hide(s = _mm512_setzero_si512());
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < n_turns; ++i) {
#pragma GCC unroll 24
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, a, b);
  }
#pragma GCC unroll 24
  for (auto& s : sum) hide(s);
}

}  // namespace quern
