// SPDX-License-Identifier: Apache-2.0
// 8 x 3 vectors: 24 sums, 3 columns and a factor in 32 registers; 11 loads for 24 multiply-adds.
#include "kernels/intrinsics.h"
#include "kernels/subtract_rows.h"

namespace quern {
namespace {

struct Lanes {
  static constexpr int kLanes = 8, kRows = 8, kVectors = 3;
  __m512d v;

  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
  static Lanes set(double a) { return {_mm512_set1_pd(a)}; }
  static Lanes load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Lanes load_first(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store_first(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }
  static Lanes subtract_product(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fnmadd_pd(a.v, b.v, c.v)};
  }
};

}  // namespace

void fill_subtract_rows_avx512(KernelTable& table) {
  table.subtract_rows = SubtractRows<Lanes>::run;
}

}  // namespace quern
