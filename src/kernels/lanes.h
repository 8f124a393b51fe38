// SPDX-License-Identifier: Apache-2.0
// The row kernels over a type V of sixteen float lanes, compiled once per ISA: one text, so that
// what differs between ISAs is the few lines of V alone. Each follows its scalar twin in
// kernels_ref.cc operation by operation.
//
// V must have internal linkage (see vec_math.h). Besides the members listed there it has: load,
// store, load_first(p, n) (zeros beyond lane n), store_first(p, n), keep_first(v, n, fill), negate,
// sum and max_of (the trees of kernels.h), from_half(p), from_bf16(p), to_half(v, p), and what
// lanes_blocks.h, lanes_hadamard.h and lanes_pairs.h name.
#pragma once

#include <cstdint>

#include "kernels/lanes_blocks.h"
#include "kernels/lanes_hadamard.h"
#include "kernels/lanes_pairs.h"
#include "kernels/pack_pairs.h"
#include "kernels/tables.h"
#include "kernels/vec_math.h"

namespace quern {

template <class V>
struct RowKernels {
  static constexpr float kInfinity = __builtin_inff();

  // store(i, f(i)) for whole vectors of a row, then for its tail: `f` takes a loader, so that the
  // tail reads and writes inside the row only.
  struct Whole {
    int64_t i;
    V operator()(const float* p) const { return V::load(p + i); }
    void store(V v, float* p) const { v.store(p + i); }
  };
  struct First {
    int64_t i;
    int n;
    V operator()(const float* p) const { return V::load_first(p + i, n); }
    void store(V v, float* p) const { v.store_first(p + i, n); }
  };
  template <class F>
  static inline void for_row(int64_t n, F f) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) f(Whole{i});
    if (i < n) f(First{i, static_cast<int>(n - i)});
  }

  // 16-bit elements: a tail goes through a padded copy.
  static void bf16_to_float(const void* src, int64_t n, float* dst) {
    const char* from = static_cast<const char*>(src);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) V::from_bf16(from + 2 * i).store(dst + i);
    if (i < n) {
      char tail[32] = {};
      __builtin_memcpy(tail, from + 2 * i, static_cast<size_t>(2 * (n - i)));
      V::from_bf16(tail).store_first(dst + i, static_cast<int>(n - i));
    }
  }
  static void f16_to_float(const void* src, int64_t n, float* dst) {
    const char* from = static_cast<const char*>(src);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) V::from_half(from + 2 * i).store(dst + i);
    if (i < n) {
      char tail[32] = {};
      __builtin_memcpy(tail, from + 2 * i, static_cast<size_t>(2 * (n - i)));
      V::from_half(tail).store_first(dst + i, static_cast<int>(n - i));
    }
  }
  static void float_to_f16(const float* src, int64_t n, void* dst) {
    char* to = static_cast<char*>(dst);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) V::to_half(V::load(src + i), to + 2 * i);
    if (i < n) {
      char tail[32];
      V::to_half(V::load_first(src + i, static_cast<int>(n - i)), tail);
      __builtin_memcpy(to + 2 * i, tail, static_cast<size_t>(2 * (n - i)));
    }
  }

  static void round_bf16(const float* x, int64_t n, float* y) {
    for_row(n, [&](auto at) {
      const V high = V::max(V::set(-kMostBf16), at(x));
      at.store(vec_math::round_bf16(V::min(V::set(kMostBf16), high)), y);
    });
  }

  static void pack_pairs(const float* w, int64_t ld_w, int64_t n, int64_t k, uint16_t* block) {
    pack_pairs_by<V>(round_bf16, w, ld_w, n, k, block);
  }

  static float dot(const float* a, const float* b, int64_t k) {
    V sum = V::set(0);
    for_row(k, [&](auto at) { sum = V::fma(at(a), at(b), sum); });
    return V::sum(sum);
  }

  static void axpy(float a, const float* x, int64_t n, float* y) {
    const V factor = V::set(a);
    for_row(n, [&](auto at) { at.store(V::fma(factor, at(x), at(y)), y); });
  }
  static void add(const float* x, int64_t n, float* y) {
    for_row(n, [&](auto at) { at.store(V::add(at(y), at(x)), y); });
  }
  static void scale(float a, int64_t n, float* x) {
    const V factor = V::set(a);
    for_row(n, [&](auto at) { at.store(V::mul(at(x), factor), x); });
  }
  static void multiply(const float* a, const float* b, int64_t n, float* y) {
    for_row(n, [&](auto at) { at.store(V::mul(at(a), at(b)), y); });
  }

  static void rms_norm(const float* x, const float* gain, float eps, int64_t n, float* y) {
    const float r = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + eps);
    if (gain == nullptr) {
      for_row(n, [&](auto at) { at.store(V::mul(at(x), V::set(r)), y); });
    } else {
      for_row(n, [&](auto at) { at.store(V::mul(V::mul(at(x), V::set(r)), at(gain)), y); });
    }
  }

  static inline V deviation(Whole at, const float* x, V mean) { return V::sub(at(x), mean); }
  static inline V deviation(First at, const float* x, V mean) {
    return V::keep_first(V::sub(at(x), mean), at.n, 0.0f);
  }
  static void layer_norm(const float* x, const float* gain, const float* bias, float eps, int64_t n,
                         float* y) {
    V sum = V::set(0);
    for_row(n, [&](auto at) { sum = V::add(sum, at(x)); });
    const V mean = V::set(V::sum(sum) / static_cast<float>(n));
    V squares = V::set(0);
    for_row(n, [&](auto at) {
      const V d = deviation(at, x, mean);
      squares = V::fma(d, d, squares);
    });
    const V r = V::set(1.0f / __builtin_sqrtf(V::sum(squares) / static_cast<float>(n) + eps));
    for_row(n, [&](auto at) {
      V scaled = V::mul(V::sub(at(x), mean), r);
      if (gain != nullptr) scaled = V::mul(scaled, at(gain));
      if (bias != nullptr) scaled = V::add(scaled, at(bias));
      at.store(scaled, y);
    });
  }

  template <Activation kActivation>
  static void activate_row(const float* up, int64_t n, float* x) {
    if (up == nullptr) {
      for_row(n, [&](auto at) { at.store(vec_math::activation<V, kActivation>(at(x)), x); });
    } else {
      for_row(n, [&](auto at) {
        at.store(V::mul(vec_math::activation<V, kActivation>(at(x)), at(up)), x);
      });
    }
  }
  static void activate_gated(Activation activation, const float* up, int64_t n, float* x) {
    switch (activation) {
      case Activation::kSilu:
        return activate_row<Activation::kSilu>(up, n, x);
      case Activation::kGelu:
        return activate_row<Activation::kGelu>(up, n, x);
      case Activation::kGeluTanh:
        return activate_row<Activation::kGeluTanh>(up, n, x);
      case Activation::kRelu:
        return activate_row<Activation::kRelu>(up, n, x);
      case Activation::kRelu2:
        return activate_row<Activation::kRelu2>(up, n, x);
    }
  }
  static void activate(Activation activation, int64_t n, float* x) {
    activate_gated(activation, nullptr, n, x);
  }

  static void soft_cap(float cap, int64_t n, float* x) {
    const V c = V::set(cap);
    for_row(n, [&](auto at) { at.store(V::mul(vec_math::tanh(V::div(at(x), c)), c), x); });
  }

  static inline V padded(Whole, V v, float) { return v; }
  static inline V padded(First at, V v, float fill) { return V::keep_first(v, at.n, fill); }

  static float max(const float* x, int64_t n) {
    V top = V::set(-kInfinity);
    for_row(n, [&](auto at) { top = V::max(top, padded(at, at(x), -kInfinity)); });
    return V::max_of(top);
  }
  static void softmax(float a, int64_t n, float* x, float* lse) {
    const V factor = V::set(a);
    V tops = V::set(-kInfinity);
    for_row(n,
            [&](auto at) { tops = V::max(tops, padded(at, V::mul(at(x), factor), -kInfinity)); });
    const float top = V::max_of(tops);
    if (lse != nullptr) *lse = top;
    if (top == -kInfinity) {
      for_row(n, [&](auto at) { at.store(V::set(0), x); });
      return;
    }
    V sums = V::set(0);
    for_row(n, [&](auto at) {
      const V e = vec_math::exp(V::sub(V::mul(at(x), factor), V::set(top)));
      at.store(e, x);
      sums = V::add(sums, padded(at, e, 0.0f));
    });
    const float sum = V::sum(sums);
    scale(1.0f / sum, n, x);
    if (lse != nullptr) *lse = top + log_of(sum);
  }
  static float softmax_bf16(float a, int64_t n, float* x, float* lse) {
    const V factor = V::set(a);
    V tops[4] = {V::set(-kInfinity), V::set(-kInfinity), V::set(-kInfinity), V::set(-kInfinity)};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {  // the order of a maximum does not show
      for (int u = 0; u < 4; ++u)
        tops[u] = V::max(tops[u], V::mul(V::load(x + i + 16 * u), factor));
    }
    for_row(n - i, [&](auto at) {
      tops[0] = V::max(tops[0], padded(at, V::mul(at(x + i), factor), -kInfinity));
    });
    const float top = V::max_of(V::max(V::max(tops[0], tops[1]), V::max(tops[2], tops[3])));
    if (lse != nullptr) *lse = top;
    if (top == -kInfinity) {
      for_row(n, [&](auto at) { at.store(V::set(0), x); });
      return 0;
    }
    V sums = V::set(0);
    for_row(n, [&](auto at) {
      const V e = vec_math::exp(V::sub(V::mul(at(x), factor), V::set(top)));
      const V rounded = vec_math::round_bf16(e);
      at.store(rounded, x);
      sums = V::add(sums, padded(at, rounded, 0.0f));
    });
    const float sum = V::sum(sums);
    if (lse != nullptr) *lse = top + log_of(sum);
    return 1.0f / sum;
  }
  static void exp_rows(const ScoreRows& rows, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      float* x = rows.x + i * rows.ld;
      const int64_t first = rows.first[i], last = rows.last[i];
      const V factor = V::set(rows.to_exponent), top = V::set(-rows.tops[i]);
      V sum = V::load(rows.sums + 16 * i);
      for (int64_t j = 0; j < rows.n_cols; j += 16) {
        if (j + 16 <= first || j >= last) {
          V::set(0).store(x + j);
          continue;
        }
        vec_math::exp2(V::fma(V::load(x + j), factor, top)).store(x + j);
        for (int64_t l = j; l < first; ++l) x[l] = 0;
        for (int64_t l = last; l < j + 16; ++l) x[l] = 0;
        sum = V::add(sum, V::load(x + j));
      }
      sum.store(rows.sums + 16 * i);
    }
  }
  static float log_sum_exp(const float* x, int64_t n) {
    const float top = max(x, n);
    if (top == -kInfinity) return top;
    V sums = V::set(0);
    for_row(n, [&](auto at) {
      sums = V::add(sums, padded(at, vec_math::exp(V::sub(at(x), V::set(top))), 0.0f));
    });
    return top + log_of(V::sum(sums));
  }

  static void rope(const float* cosine, const float* sine, int64_t n_dims, float* x) {
    float* y = x + n_dims / 2;
    for_row(n_dims / 2, [&](auto at) {
      const V a = at(x), b = at(y), c = at(cosine), s = at(sine);
      at.store(V::fma(a, c, V::negate(V::mul(b, s))), x);
      at.store(V::fma(b, c, V::mul(a, s)), y);
    });
  }

  static void fill(KernelTable& table) {
    table.bf16_to_float = bf16_to_float;
    table.f16_to_float = f16_to_float;
    table.float_to_f16 = float_to_f16;
    table.dot = dot;
    table.axpy_rows = BlockKernels<V>::axpy_rows;
    table.axpy_rows_half = BlockKernels<V>::axpy_rows_half;
    table.axpy = axpy;
    table.add = add;
    table.scale = scale;
    table.multiply = multiply;
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.activate = activate;
    table.activate_gated = activate_gated;
    table.soft_cap = soft_cap;
    table.softmax = softmax;
    table.softmax_bf16 = softmax_bf16;
    table.exp_rows = exp_rows;
    table.round_bf16 = round_bf16;
    table.pair_product = PairKernels<V>::pair_product;
    table.pack_pairs = pack_pairs;
    table.log_sum_exp = log_sum_exp;
    table.max = max;
    table.rope = rope;
    HadamardKernels<V>::fill(table);
  }
};

}  // namespace quern
