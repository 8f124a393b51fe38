// SPDX-License-Identifier: Apache-2.0
// The generic operations of the runtime, as a table of function pointers chosen once per process.
//
// Every operation is defined to the bit, so that all implementations (scalar, AVX2, AVX-512) agree
// exactly and results depend neither on the machine, nor on threads, nor on the batch:
//   * a sum over k elements runs in 16 lanes: lane l takes elements l, l + 16, l + 32, ... in order
//     by fused multiply-add, starting from +0; a short tail is padded with zeros; lanes are then
//     added as a tree: l and l + 8, then l + 4, l + 2, l + 1;
//   * elementwise operations round once per written operation, fused only where `fma` is written;
//   * maxima run in the same lanes and tree, `a > b ? a : b`, padded with -inf;
//   * exp, tanh, erf are quern's own polynomials (kernels/vec_math.h), the same in every ISA.
// Which NaN comes out of an operation on NaNs is left open; everything else is not.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "kernels/activation.h"
#include "kernels/level_block.h"
#include "kernels/pair_product.h"
#include "kernels/panels.h"
#include "kernels/score_rows.h"

namespace quern {

// AMX stands above AVX-512 in the products that use its tiles, and is the same elsewhere.
enum class Isa : uint8_t { kRef, kAvx2, kAvx512, kAmx };

std::string_view isa_name(Isa isa);  // "ref", "avx2", "avx512", "amx"
Isa best_isa();                      // what this machine can run, capped by QUERN_ISA
bool host_has(Isa isa);              // regardless of QUERN_ISA

// A K x K matrix of signs, K a multiple of 4, four columns of a row at a time: the sign of the
// first, and in which of the others the sign differs from it (bit 0 is the second).
struct HadamardTerms {
  int64_t k = 0;
  const float* sign = nullptr;       // [k, k / 4]
  const uint8_t* pattern = nullptr;  // [k, k / 4]
};

struct KernelTable {
  Isa isa;  // of its vector instructions: at most kAvx512

  // dst[i] = float of n stored values; src may be unaligned, may not overlap dst. A signalling
  // half NaN becomes quiet.
  void (*bf16_to_float)(const void* src, int64_t n, float* dst);
  void (*f16_to_float)(const void* src, int64_t n, float* dst);
  void (*float_to_f16)(const float* src, int64_t n, void* dst);  // nearest even
  // y[i] = x[i] held within +-2^100, to 8 significant bits (kernels/vec_math.h), zero where |x[i]|
  // < 2^-50: a float that is a bfloat16. y may be x.
  void (*round_bf16)(const float* x, int64_t n, float* y);

  // sum_k a[k] b[k], in the 16-lane order.
  float (*dot)(const float* a, const float* b, int64_t k);

  // y[i, j] = dot(x[i, :], w[j, :]) for i < n_x, j < n_w: many dots at once, each with the bits of
  // `dot`. ld* are row strides in elements. y may not overlap x or w.
  void (*dot_tile)(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w,
                   int64_t n_w, int64_t k, float* y, int64_t ld_y);

  // y[i, j] = fma(a[i, p], v[p, j], y[i, j]) for p = 0, 1, ..., n_v - 1 in this order, i < n_y and
  // j < n: weighted sums of rows, each with the bits of n_v calls of `axpy`. y may not overlap.
  void (*axpy_rows)(const float* a, int64_t ld_a, int64_t n_y, const float* v, int64_t ld_v,
                    int64_t n_v, int64_t n, float* y, int64_t ld_y);
  // The same with v of halves; the n_v rows behind them are fetched ahead.
  void (*axpy_rows_half)(const float* a, int64_t ld_a, int64_t n_y, const void* v, int64_t ld_v,
                         int64_t n_v, int64_t n, float* y, int64_t ld_y);

  // y[i, j] = fma(-a[i, p], v[p, j], y[i, j]) for p = 0, 1, ..., n_v - 1 in this order, i < n_y and
  // j < n, in double: y -= a v for factors of matrices. n_v may be 0. y may not overlap a or v.
  void (*subtract_rows)(const double* a, int64_t ld_a, int64_t n_y, const double* v, int64_t ld_v,
                        int64_t n_v, int64_t n, double* y, int64_t ld_y);

  // y[i] = fma(a, x[i], y[i])
  void (*axpy)(float a, const float* x, int64_t n, float* y);
  // y[i] += x[i]
  void (*add)(const float* x, int64_t n, float* y);
  // x[i] *= a
  void (*scale)(float a, int64_t n, float* x);
  // y[i] = a[i] * b[i]; y may be a or b
  void (*multiply)(const float* a, const float* b, int64_t n, float* y);

  // y = x / sqrt(dot(x, x) / n + eps) * gain (gain null: 1), computed as (x * r) * gain with
  // r = 1 / sqrt(...). y may be x.
  void (*rms_norm)(const float* x, const float* gain, float eps, int64_t n, float* y);
  // y = (x - mean) / sqrt(var + eps) * gain + bias (each may be null), computed as
  // ((x - mean) * r) * gain + bias. y may be x.
  void (*layer_norm)(const float* x, const float* gain, const float* bias, float eps, int64_t n,
                     float* y);

  // x[i] = activation(x[i])
  void (*activate)(Activation activation, int64_t n, float* x);
  // gate[i] = activation(gate[i]) * up[i]
  void (*activate_gated)(Activation activation, const float* up, int64_t n, float* gate);

  // x[i] = cap * tanh(x[i] / cap)
  void (*soft_cap)(float cap, int64_t n, float* x);
  // x = softmax(a x), by subtracting the maximum, as exp(a x - max) * (1 / sum); lse, unless null,
  // becomes log(sum exp(a x)). Where all are -inf (or n is 0): zeros and -inf.
  void (*softmax)(float a, int64_t n, float* x, float* lse);
  // The same in bfloat16, for products of pairs: x = round_bf16(exp(a x - max)), and 1 / sum x is
  // returned, by which the softmax is x times that; 0 where all are -inf. lse as of these x.
  float (*softmax_bf16)(float a, int64_t n, float* x, float* lse);
  // n rows of scores become weights, and are summed up (see kernels/score_rows.h).
  void (*exp_rows)(const ScoreRows& rows, int64_t n);
  // log(sum exp(x)) without writing.
  float (*log_sum_exp)(const float* x, int64_t n);
  float (*max)(const float* x, int64_t n);

  // Rotates pairs (x[j], x[j + n_dims / 2]) by the angles whose cosines and sines are given:
  //   x[j] <- fma(x[j], c[j], -(x[j+h] s[j]));  x[j+h] <- fma(x[j+h], c[j], x[j] s[j])
  void (*rope)(const float* cosine, const float* sine, int64_t n_dims, float* x);

  // Fast Walsh-Hadamard transform of 2^log2_n values: times `signs` (+-1, or null), then
  // butterflies (a + b, a - b) with h = 1, 2, 4, ..., then times `scale`. y may be x, and else may
  // not overlap it.
  void (*fwht)(int log2_n, const float* signs, float scale, const float* x, float* y);
  // The same over the first axis of [2^log2_n, width].
  void (*fwht_rows)(int log2_n, int64_t width, float scale, const float* x, float* y);
  // y[i, :] = sum_j Had_K[i, j] x[j, :], rows of `width`: the j in fours, (+-a +- b) + (+-c +- d)
  // each, added up in ascending order from +0. y may not overlap x.
  void (*hadamard_mix)(const HadamardTerms& terms, const float* x, int64_t width, float* y);

  // Rounds a row to int8 (see kernels/panels.h), k columns in groups of `group`: with a the largest
  // |x| of a group, scale = a / 127 and level = x * (127 / a), nearest even. A group below 2^-100
  // is zero; one with an infinity or a NaN has zero levels and a scale of NaN.
  void (*quantize_row)(const float* x, int64_t k, int64_t group, int8_t* levels, float* scales,
                       int32_t* offsets);
  // The smallest and the largest of n values and zero; both NaN where one is infinite or NaN.
  void (*range)(const float* x, int64_t n, float* low, float* high);
  // Levels of k values on a given grid: x * to_levels, held within [low, high], nearest even; all
  // zero where to_levels is 0. Zeros fill up the last group of `group`, a multiple of 16; offsets
  // are those of Int8Rows. x and to_levels are finite.
  void (*round_levels)(const float* x, int64_t k, int64_t group, float to_levels, int low, int high,
                       int8_t* levels, int32_t* offsets);
  // Rounds 16 rows of weights [n_rows, k] likewise to one panel, its groups a multiple of 64; rows
  // and columns that are missing are zero.
  void (*quantize_panel)(const float* w, int64_t n_rows, int64_t k, int64_t group, uint8_t* levels,
                         float* scales);
  // y[i, r] gathers the panels' groups (see kernels/panels.h); r < w.n_rows.
  void (*panel_dot)(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y);

  // Rows against blocks of bfloat16 (see kernels/pair_product.h).
  void (*pair_product)(const PairProduct& product);
  // Rows w[n, k] to one such block [k' / 2, n, 2], each number as round_bf16 gives it and zeros
  // behind the k, whose k' is the next multiple of 32. One row stays in order.
  void (*pack_pairs)(const float* w, int64_t ld_w, int64_t n, int64_t k, uint16_t* block);

  // n rows of a, rounded to meet a block; and their product, added to y (see
  // kernels/level_block.h). What rounds them reads of the block all but its levels, in kDown scales
  // and centres neither. What multiplies them fetches what the block says is read next.
  void (*round_level_rows)(const float* a, int64_t ld_a, int64_t n, const LevelBlock& block,
                           const LevelRows& rows);
  // exp_rows and round_level_rows of the weights, which may or may not be written; n_cols are the
  // block's rows.
  void (*round_exp_rows)(const ScoreRows& scores, int64_t n, const LevelBlock& block,
                         const LevelRows& rows);
  void (*level_dot)(const LevelBlock& block, const LevelRows& rows, int64_t n, float* y,
                    int64_t ld_y);
  // The block as floats [rows, cols]: fma(level - zero, scale, centre), or scale times level.
  void (*level_floats)(const LevelBlock& block, float* x);
};

// The table of the best ISA, or of a given one (for tests; falls back to what the host has).
const KernelTable& kernels();
const KernelTable& kernels(Isa isa);

}  // namespace quern
