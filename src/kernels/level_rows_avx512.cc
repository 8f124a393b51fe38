// SPDX-License-Identifier: Apache-2.0
// A set of whole numbers at a time. Sets of 64, those of a block of keys or values, stay in
// registers from scores to whole numbers.
#include <algorithm>

#include "kernels/lanes_avx512.h"
#include "kernels/panels_round.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

constexpr int kMostVectors = kMostLevelRows / 16;

// kN vectors of numbers, or 0: as many as the block says.
template <int kN>
struct Set {
  __m512 t[kN > 0 ? kN : kMostVectors];
  int64_t n;  // vectors

  explicit Set(int64_t size) : n(kN > 0 ? kN : size / 16) {}

  template <class F>
  [[gnu::always_inline]] inline void for_vectors(const F& f) {
    if constexpr (kN > 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kN; ++v) f(v);
    } else {
      for (int v = 0; v < n; ++v) f(v);
    }
  }

  // Whole numbers of the set to q, their planes `plane` apart; the step, and -zero times their sum.
  template <Sign kSign>
  [[gnu::always_inline]] inline void round(const LevelBlock& b, uint8_t* q, float* step,
                                           int32_t* offset) {
    __m512i top = _mm512_setzero_si512();
    for_vectors([&](int v) {
      const __m512i bits = _mm512_castps_si512(t[v]);
      top = _mm512_max_epu32(top, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    });
    const GroupRounding rounding(_mm512_reduce_max_epu32(top), b.most());
    *step = rounding.scale;
    const __m512 factor = _mm512_set1_ps(rounding.to_levels);
    const auto is_number = static_cast<__mmask16>(rounding.to_levels != 0 ? 0xffff : 0);
    __m512i sum = _mm512_setzero_si512();
    for_vectors([&](int v) {
      __m512i level = _mm512_maskz_cvtps_epi32(is_number, _mm512_mul_ps(t[v], factor));
      if constexpr (kSign == Sign::kUnsigned) level = _mm512_max_epi32(level, __m512i{});
      sum = _mm512_add_epi32(sum, level);
      put<kSign>(b, level, q + 16 * v);
    });
    *offset = b.zero == 0 ? 0 : -b.zero * _mm512_reduce_add_epi32(sum);
  }

 private:
  template <Sign kSign>
  [[gnu::always_inline]] static inline void put(const LevelBlock& b, __m512i level, uint8_t* q) {
    const __m128i low = _mm512_cvtepi32_epi8(level);
    if (b.planes == 1) return _mm_storeu_si128(reinterpret_cast<__m128i*>(q), low);
    if constexpr (kSign == Sign::kSigned) level = _mm512_add_epi32(level, _mm512_set1_epi32(128));
    const __m128i upper = _mm512_cvtepi32_epi8(_mm512_srai_epi32(level, 8));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + b.rows), low);
  }
};

// The groups of a row in kAcross, which `load(v)` reads.
template <Sign kSign, int kN, class Load>
[[gnu::always_inline]] inline void round_across(const Load& load, const LevelBlock& b,
                                                const LevelRows& to) {
  Set<kN> row(b.rows), set(b.rows);
  __mmask16 counts[kN > 0 ? kN : kMostVectors] = {};
  row.for_vectors([&](int v) {
    row.t[v] = load(v);
    counts[v] = _mm512_cmp_ps_mask(row.t[v], _mm512_setzero_ps(), _CMP_NEQ_UQ);
  });
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    const float* scales = b.scales + g * b.rows;
    set.for_vectors([&](int v) {
      set.t[v] = _mm512_maskz_mul_ps(counts[v], row.t[v], _mm512_loadu_ps(scales + 16 * v));
    });
    to.sums[g] = 0;
    if (b.centres != nullptr) {
      const float* centres = b.centres + g * b.rows;
      __m512 sum = _mm512_setzero_ps();
      set.for_vectors([&](int v) {
        sum = _mm512_mask3_fmadd_ps(row.t[v], _mm512_loadu_ps(centres + 16 * v), sum, counts[v]);
      });
      to.sums[g] = Lanes::sum({sum});
    }
    set.template round<kSign>(b, to.q + g * b.planes * b.rows, to.steps + g, to.offsets + g);
  }
}

template <Sign kSign, int kN>
[[gnu::always_inline]] inline void round_down(const float* a, const LevelBlock& b,
                                              const LevelRows& to) {
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    Set<kN> set(b.group);
    __m512 sum = _mm512_setzero_ps();
    set.for_vectors([&](int v) {
      set.t[v] = _mm512_loadu_ps(a + g * b.group + 16 * v);
      sum = _mm512_add_ps(sum, set.t[v]);
    });
    to.sums[g] = Lanes::sum({sum});
    set.template round<kSign>(b, to.q + g * b.group, to.steps + g, to.offsets + g);
  }
}

template <Sign kSign, int kN>
void round_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                const LevelRows& rows) {
  for (int64_t i = 0; i < n; ++i, a += ld_a) {
    const LevelRows to = rows.from(i, b);
    if (b.share == Share::kDown) {
      round_down<kSign, kN>(a, b, to);
    } else {
      round_across<kSign, kN>([a](int v) { return _mm512_loadu_ps(a + 16 * v); }, b, to);
    }
  }
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

// A row that sees all of a block of 64.
void round_exp_row(const ScoreRows& scores, int64_t i, const LevelBlock& b, const LevelRows& to) {
  const float *x = scores.x + i * scores.ld, top = -scores.tops[i];
  const Lanes factor = Lanes::set(scores.to_exponent);
  Lanes sum = Lanes::load(scores.sums + 16 * i);
  round_across<Sign::kUnsigned, 4>(
      [&](int v) {
        const Lanes e =
            vec_math::exp2(Lanes::fma(Lanes::load(x + 16 * v), factor, Lanes::set(top)));
        sum = Lanes::add(sum, e);
        return e.v;
      },
      b, to);
  sum.store(scores.sums + 16 * i);
}

void round_exp_rows(const ScoreRows& scores, int64_t n, const LevelBlock& b,
                    const LevelRows& rows) {
  const bool is_usual = b.share == Share::kAcross && b.rows == 64 && b.sign == Sign::kUnsigned;
  for (int64_t i = 0; i < n; ++i) {
    const LevelRows to = rows.from(i, b);
    if (is_usual && scores.first[i] == 0 && scores.last[i] == b.rows) {
      round_exp_row(scores, i, b, to);
      continue;
    }
    const ScoreRows row = scores.from(i);
    kernels(Isa::kAvx512).exp_rows(row, 1);
    round_level_rows(row.x, row.ld, 1, b, to);
  }
}

}  // namespace

void fill_level_rows_avx512(KernelTable& table) {
  table.round_level_rows = round_level_rows;
  table.round_exp_rows = round_exp_rows;
}

}  // namespace quern
