// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/lanes_avx2.h"
#include "kernels/panels_round.h"
#include "kernels/tables.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

uint32_t largest_magnitude(const float* t, int64_t n) {
  __m256i top = _mm256_setzero_si256();
  for (int64_t r = 0; r < n; r += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(t + r));
    top = _mm256_max_epu32(top, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  alignas(32) uint32_t tops[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(tops), top);
  return *std::max_element(tops, tops + 8);
}

int32_t sum_of(__m256i lanes) {
  alignas(32) int32_t each[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(each), lanes);
  int32_t sum = 0;
  for (const int32_t lane : each) sum += lane;
  return sum;
}

// The last bytes of eight numbers.
void put_bytes(__m256i numbers, uint8_t* q) {
  const __m256i low = _mm256_and_si256(numbers, _mm256_set1_epi32(255));
  const __m128i pairs =
      _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packus_epi16(pairs, pairs));
}

// Rounds a set t [n] to whole numbers, their planes b.rows apart; -zero times their sum.
int32_t round_set(const LevelBlock& b, const float* t, int64_t n, uint8_t* q, float* step) {
  const GroupRounding rounding(largest_magnitude(t, n), b.most());
  *step = rounding.scale;
  const bool is_signed = b.sign == Sign::kSigned;
  const __m256 factor = _mm256_set1_ps(rounding.to_levels);
  const __m256i half = _mm256_set1_epi32(is_signed ? 128 : 0);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t r = 0; r < n; r += 8) {
    __m256i whole = _mm256_setzero_si256();
    if (rounding.to_levels != 0) {
      whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(t + r), factor));
    }
    if (!is_signed) whole = _mm256_max_epi32(whole, _mm256_setzero_si256());
    sum = _mm256_add_epi32(sum, whole);
    if (b.planes == 1) {
      put_bytes(whole, q + r);
    } else {
      put_bytes(_mm256_srai_epi32(_mm256_add_epi32(whole, half), 8), q + r);
      put_bytes(whole, q + b.rows + r);
    }
  }
  return -b.zero * sum_of(sum);
}

void round_down(const float* a, const LevelBlock& b, const LevelRows& to) {
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    const float* part = a + g * b.group;
    Lanes sum = Lanes::set(0);
    for (int64_t r = 0; r < b.group; r += 16) sum = Lanes::add(sum, Lanes::load(part + r));
    to.sums[g] = Lanes::sum(sum);
    to.offsets[g] = round_set(b, part, b.group, to.q + g * b.group, to.steps + g);
  }
}

// y where x is not zero, else z.
Lanes where_not_zero(Lanes x, Lanes y, Lanes z) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_blendv_ps(z.lo, y.lo, _mm256_cmp_ps(x.lo, zero, _CMP_NEQ_UQ)),
          _mm256_blendv_ps(z.hi, y.hi, _mm256_cmp_ps(x.hi, zero, _CMP_NEQ_UQ))};
}

void round_across(const float* a, const LevelBlock& b, const LevelRows& to) {
  alignas(32) float t[kMostLevelRows];
  for (int64_t g = 0; g < b.n_groups(); ++g) {
    Lanes sum = Lanes::set(0);
    for (int64_t r = 0; r < b.rows; r += 16) {
      const Lanes x = Lanes::load(a + r), scale = Lanes::load(b.scales + g * b.rows + r);
      where_not_zero(x, Lanes::mul(x, scale), Lanes::set(0)).store(t + r);
      if (b.centres == nullptr) continue;
      const Lanes more = Lanes::fma(x, Lanes::load(b.centres + g * b.rows + r), sum);
      sum = where_not_zero(x, more, sum);
    }
    to.sums[g] = Lanes::sum(sum);
    to.offsets[g] = round_set(b, t, b.rows, to.q + g * b.planes * b.rows, to.steps + g);
  }
}

void round_level_rows(const float* a, int64_t ld_a, int64_t n, const LevelBlock& b,
                      const LevelRows& rows) {
  for (int64_t i = 0; i < n; ++i) {
    (b.share == Share::kDown ? round_down : round_across)(a + i * ld_a, b, rows.from(i, b));
  }
}

void round_exp_rows(const ScoreRows& scores, int64_t n, const LevelBlock& b,
                    const LevelRows& rows) {
  kernels(Isa::kAvx2).exp_rows(scores, n);
  round_level_rows(scores.x, scores.ld, n, b, rows);
}

}  // namespace

void fill_level_rows_avx2(KernelTable& table) {
  table.round_level_rows = round_level_rows;
  table.round_exp_rows = round_exp_rows;
}

}  // namespace quern
