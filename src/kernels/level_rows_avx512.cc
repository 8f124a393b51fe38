// SPDX-License-Identifier: Apache-2.0
// Sixteen sets of numbers are rounded together: first what a set's numbers are, then all steps at
// once, then whole numbers, so that none waits for its own largest. Sets of 64 are those of a block
// of keys or values.
#include <algorithm>

#include "kernels/lanes_avx512.h"
#include "kernels/pack_avx512.h"
#include "kernels/round_avx512.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

constexpr int kMostVectors = kMostLevelRows / 16;

// Sets of kN vectors, or 0: as many as the block says.
template <Sign kSign, int kN>
class Sets {
  static constexpr int kRoom = kN > 0 ? kN : kMostVectors;

 public:
  // Results of the sets go to `to`, one after the other.
  Sets(const LevelBlock& block, int64_t size, const LevelRows& to)
      : block_(block), n_vectors_(kN > 0 ? kN : size / 16), to_(to) {}

  template <class F>
  [[gnu::always_inline]] inline void for_vectors(const F& f) const {
    if constexpr (kN > 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kN; ++v) f(v);
    } else {
      for (int v = 0; v < n_vectors_; ++v) f(v);
    }
  }

  // A set of numbers `number(v)`, the lanes of the sum that goes with it, and where whole numbers
  // go.
  template <class Number>
  [[gnu::always_inline]] inline void add(const Number& number, __m512 sum, uint8_t* q) {
    __m512i top = _mm512_setzero_si512();
    for_vectors([&](int v) {
      const __m512 t = number(v);
      _mm512_store_ps(numbers_[n_][v], t);
      const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
      top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_castps_si512(t), magnitude));
    });
    tops_[n_] = top;
    sums_[n_] = _mm512_castps_si512(sum);
    q_[n_] = q;
    if (++n_ == 16) round();
  }

  // What is left of the sets.
  void round() {
    for (int s = n_; s < 16; ++s) tops_[s] = sums_[s] = _mm512_setzero_si512();
    const GroupRoundings roundings(largest_of_each(tops_), block_.most());
    const __mmask16 used = first_lanes(n_);
    _mm512_mask_storeu_ps(to_.steps, used, roundings.scales);
    _mm512_mask_storeu_ps(to_.sums, used, float_sum_of_each(sums_));
    alignas(64) float to_levels[16];
    _mm512_store_ps(to_levels, roundings.to_levels);
    __m512i totals[16] = {};
    for (int s = 0; s < n_; ++s) totals[s] = whole_numbers(s, to_levels[s]);
    __m512i offsets = _mm512_setzero_si512();
    if (block_.zero != 0) {
      offsets = _mm512_mullo_epi32(sum_of_each(totals), _mm512_set1_epi32(-block_.zero));
    }
    _mm512_mask_storeu_epi32(to_.offsets, used, offsets);
    to_ = {nullptr, to_.steps + n_, to_.offsets + n_, to_.sums + n_};
    n_ = 0;
  }

 private:
  // Those of a set, and the lanes of their sum.
  [[gnu::always_inline]] inline __m512i whole_numbers(int s, float to_levels) const {
    const auto is_number = static_cast<__mmask16>(to_levels != 0 ? 0xffff : 0);
    const auto level = [&](int v) {
      const __m512 t = _mm512_load_ps(numbers_[s][v]);
      return _mm512_maskz_cvtps_epi32(is_number, _mm512_mul_ps(t, _mm512_set1_ps(to_levels)));
    };
    __m512i sum = _mm512_setzero_si512();
    if (kN == 4 && block_.planes == 1) {
      const __m512i ones = _mm512_set1_epi8(1);
      __m512i bytes;
      if constexpr (kSign == Sign::kSigned) {
        bytes = pack_bytes(level(0), level(1), level(2), level(3));
        sum = _mm512_dpbusd_epi32(sum, ones, bytes);
      } else {
        bytes = pack_unsigned_bytes(level(0), level(1), level(2), level(3));
        sum = _mm512_dpbusd_epi32(sum, bytes, ones);
      }
      _mm512_storeu_si512(q_[s], bytes);
      return sum;
    }
    for_vectors([&](int v) {
      __m512i whole = level(v);
      if constexpr (kSign == Sign::kUnsigned) whole = _mm512_max_epi32(whole, __m512i{});
      sum = _mm512_add_epi32(sum, whole);
      put(whole, q_[s] + 16 * v);
    });
    return sum;
  }

  // In planes, the upper one first.
  [[gnu::always_inline]] inline void put(__m512i whole, uint8_t* q) const {
    const __m128i low = _mm512_cvtepi32_epi8(whole);
    if (block_.planes == 1) return _mm_storeu_si128(reinterpret_cast<__m128i*>(q), low);
    if constexpr (kSign == Sign::kSigned) whole = _mm512_add_epi32(whole, _mm512_set1_epi32(128));
    const __m128i upper = _mm512_cvtepi32_epi8(_mm512_srai_epi32(whole, 8));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + block_.rows), low);
  }

  const LevelBlock& block_;
  int64_t n_vectors_;
  LevelRows to_;
  int n_ = 0;
  alignas(64) float numbers_[16][kRoom][16];
  __m512i tops_[16], sums_[16];
  uint8_t* q_[16];
};

// The groups of a row in kAcross, which `load(v)` reads once.
template <Sign kSign, int kN, class Load>
[[gnu::always_inline]] inline void add_across(const Load& load, const LevelBlock& b, uint8_t* q,
                                              Sets<kSign, kN>& sets) {
  __m512 row[kN > 0 ? kN : kMostVectors];
  __mmask16 counts[kN > 0 ? kN : kMostVectors] = {};
  sets.for_vectors([&](int v) {
    row[v] = load(v);
    counts[v] = _mm512_cmp_ps_mask(row[v], _mm512_setzero_ps(), _CMP_NEQ_UQ);
  });
  for (int64_t g = 0; g < b.n_groups(); ++g, q += b.planes * b.rows) {
    __m512 sum = _mm512_setzero_ps();
    if (b.centres != nullptr) {
      const float* centres = b.centres + g * b.rows;
      sets.for_vectors([&](int v) {
        sum = _mm512_mask3_fmadd_ps(row[v], _mm512_loadu_ps(centres + 16 * v), sum, counts[v]);
      });
    }
    const float* scales = b.scales + g * b.rows;
    sets.add(
        [&](int v) {
          return _mm512_maskz_mul_ps(counts[v], row[v], _mm512_loadu_ps(scales + 16 * v));
        },
        sum, q);
  }
}

template <Sign kSign, int kN>
void add_down(const float* a, const LevelBlock& b, uint8_t* q, Sets<kSign, kN>& sets) {
  for (int64_t g = 0; g < b.n_groups(); ++g, a += b.group, q += b.group) {
    __m512 sum = _mm512_setzero_ps();
    sets.for_vectors([&](int v) { sum = _mm512_add_ps(sum, _mm512_loadu_ps(a + 16 * v)); });
    sets.add([&](int v) { return _mm512_loadu_ps(a + 16 * v); }, sum, q);
  }
}

template <Sign kSign, int kN>
void round_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                const LevelRows& rows) {
  const bool is_down = b.share == Share::kDown;
  Sets<kSign, kN> sets(b, is_down ? b.group : b.rows, rows);
  for (int64_t i = 0; i < n; ++i, a += ld_a) {
    uint8_t* q = rows.from(i, b).q;
    if (is_down) {
      add_down(a, b, q, sets);
    } else {
      add_across([a](int v) { return _mm512_loadu_ps(a + 16 * v); }, b, q, sets);
    }
  }
  sets.round();
}

void round_level_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                      const LevelRows& rows) {
  const bool is_signed = b.sign == Sign::kSigned;
  const int64_t size = b.share == Share::kDown ? b.group : b.rows;
  if (size == 64) {
    (is_signed ? round_rows<Sign::kSigned, 4> : round_rows<Sign::kUnsigned, 4>)(a, ld_a, n, b,
                                                                                rows);
  } else {
    (is_signed ? round_rows<Sign::kSigned, 0> : round_rows<Sign::kUnsigned, 0>)(a, ld_a, n, b,
                                                                                rows);
  }
}

// Weights of a block of 64 become whole numbers as they are taken; rows that do not see all of it
// take theirs before.
void round_exp_rows(const ScoreRows& scores, int64_t n, const LevelBlock& b,
                    const LevelRows& rows) {
  if (b.share != Share::kAcross || b.rows != 64 || b.sign != Sign::kUnsigned) {
    kernels(Isa::kAvx512).exp_rows(scores, n);
    return round_level_rows(scores.x, scores.ld, n, b, rows);
  }
  const Lanes factor = Lanes::set(scores.to_exponent);
  Sets<Sign::kUnsigned, 4> sets(b, b.rows, rows);
  for (int64_t i = 0; i < n; ++i) {
    uint8_t* q = rows.from(i, b).q;
    const float* x = scores.x + i * scores.ld;
    if (scores.first[i] != 0 || scores.last[i] != b.rows) {
      kernels(Isa::kAvx512).exp_rows(scores.from(i), 1);
      add_across([x](int v) { return _mm512_loadu_ps(x + 16 * v); }, b, q, sets);
      continue;
    }
    const Lanes top = Lanes::set(-scores.tops[i]);
    Lanes sum = Lanes::load(scores.sums + 16 * i);
    add_across(
        [&](int v) {
          const Lanes e = vec_math::exp2(Lanes::fma(Lanes::load(x + 16 * v), factor, top));
          sum = Lanes::add(sum, e);
          return e.v;
        },
        b, q, sets);
    sum.store(scores.sums + 16 * i);
  }
  sets.round();
}

}  // namespace

void fill_level_rows_avx512(KernelTable& table) {
  table.round_level_rows = round_level_rows;
  table.round_exp_rows = round_exp_rows;
}

}  // namespace quern
