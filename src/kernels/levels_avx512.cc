// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "kernels/intrinsics.h"
#include "kernels/pack_avx512.h"
#include "kernels/tables.h"

namespace quern {
namespace {

inline __m512 load_columns(const float* x, int64_t j, int64_t k) {
  const int64_t left = std::clamp<int64_t>(k - j, 0, 16);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), x + j);
}

// What `range` has seen.
struct Seen {
  __m512 least = _mm512_setzero_ps(), most = _mm512_setzero_ps();
  __m512i magnitude = _mm512_setzero_si512();

  void add(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    magnitude = _mm512_max_epu32(magnitude, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    least = _mm512_min_ps(least, v);
    most = _mm512_max_ps(most, v);
  }
  void add(const Seen& other) {
    magnitude = _mm512_max_epu32(magnitude, other.magnitude);
    least = _mm512_min_ps(least, other.least);
    most = _mm512_max_ps(most, other.most);
  }
};

// Several at once: each waits for its last comparison.
void range(const float* x, int64_t n, float* low, float* high) {
  Seen seen[4];
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) seen[j].add(_mm512_loadu_ps(x + i + 16 * j));
  }
  for (; i < n; i += 16) seen[0].add(load_columns(x, i, n));
  seen[0].add(seen[1]);
  seen[2].add(seen[3]);
  seen[0].add(seen[2]);
  const bool is_finite = _mm512_reduce_max_epu32(seen[0].magnitude) < 0x7f800000u;
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  *low = is_finite ? _mm512_reduce_min_ps(seen[0].least) + 0.0f : kNone;
  *high = is_finite ? _mm512_reduce_max_ps(seen[0].most) + 0.0f : kNone;
}

void round_levels(const float* x, int64_t k, int64_t group, float to_levels, int low, int high,
                  int8_t* levels, int32_t* offsets) {
  const __m512 factor = _mm512_set1_ps(to_levels);
  const __m512 least = _mm512_set1_ps(static_cast<float>(low));
  const __m512 most = _mm512_set1_ps(static_cast<float>(high));
  const auto levels_of = [&](__m512 v) {
    const __m512 exact = _mm512_mul_ps(v, factor);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(exact, least), most));
  };
  for (int64_t j0 = 0; j0 < k; j0 += group) {
    __m512i sum = _mm512_setzero_si512();
    int64_t j = j0;
    for (; to_levels != 0 && j + 64 <= std::min(j0 + group, k); j += 64, levels += 64) {
      const __m512i bytes = pack_bytes(
          levels_of(_mm512_loadu_ps(x + j)), levels_of(_mm512_loadu_ps(x + j + 16)),
          levels_of(_mm512_loadu_ps(x + j + 32)), levels_of(_mm512_loadu_ps(x + j + 48)));
      sum = add_bytes(sum, bytes);
      _mm512_storeu_si512(levels, bytes);
    }
    for (; j < j0 + group; j += 16, levels += 16) {
      const __m512i level =
          to_levels != 0 ? levels_of(load_columns(x, j, k)) : _mm512_setzero_si512();
      sum = _mm512_add_epi32(sum, level);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(levels), _mm512_cvtepi32_epi8(level));
    }
    *offsets++ = -kPanelZero * _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace

void fill_levels_avx512(KernelTable& table) {
  table.range = range;
  table.round_levels = round_levels;
}

}  // namespace quern
