// SPDX-License-Identifier: Apache-2.0
// 4 x 3 vectors: 12 sums, 3 columns and a factor in 16 registers; 7 loads for 12 multiply-adds.
#include "kernels/intrinsics.h"
#include "kernels/subtract_rows.h"

namespace quern {
namespace {

struct Lanes {
  static constexpr int kLanes = 4, kRows = 4, kVectors = 3;
  __m256d v;

  static __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Lanes set(double a) { return {_mm256_set1_pd(a)}; }
  static Lanes load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Lanes load_first(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store_first(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }
  static Lanes subtract_product(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fnmadd_pd(a.v, b.v, c.v)};
  }
};

}  // namespace

void fill_subtract_rows_avx2(KernelTable& table) { table.subtract_rows = SubtractRows<Lanes>::run; }

}  // namespace quern
