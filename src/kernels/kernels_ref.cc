// SPDX-License-Identifier: Apache-2.0
// The reference of every slot of the kernel table: scalar, obvious, no ISA. It is the specification
// the other files are tested against, bit by bit, and what runs where there is nothing better.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/float_types.h"
#include "kernels/pack_pairs.h"
#include "kernels/tables.h"
#include "kernels/vec_math.h"

namespace quern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One lane, for the shared polynomials.
struct Lane {
  float v;
  static Lane set(float a) { return {a}; }
  static Lane add(Lane a, Lane b) { return {a.v + b.v}; }
  static Lane sub(Lane a, Lane b) { return {a.v - b.v}; }
  static Lane mul(Lane a, Lane b) { return {a.v * b.v}; }
  static Lane div(Lane a, Lane b) { return {a.v / b.v}; }
  static Lane fma(Lane a, Lane b, Lane c) { return {std::fma(a.v, b.v, c.v)}; }
  static Lane min(Lane a, Lane b) { return a.v < b.v ? a : b; }
  static Lane max(Lane a, Lane b) { return a.v > b.v ? a : b; }
  static Lane abs(Lane a) { return {std::fabs(a.v)}; }
  static Lane copy_sign(Lane a, Lane sign) { return {std::copysign(a.v, sign.v)}; }
  static Lane select_less(Lane a, Lane b, Lane x, Lane y) { return a.v < b.v ? x : y; }
  static Lane times_power(Lane a, Lane shifted) {
    const uint32_t n =
        std::bit_cast<uint32_t>(shifted.v) - std::bit_cast<uint32_t>(vec_math::kMagic);
    const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(n) >> 1);
    const float power1 = std::bit_cast<float>((half + 127) << 23);
    const float power2 = std::bit_cast<float>((n - half + 127) << 23);
    return {a.v * power1 * power2};
  }
};

float exp_of(float x) { return vec_math::exp(Lane{x}).v; }

float sum_lanes(float* lanes) {
  for (int h = 8; h >= 1; h /= 2) {
    for (int l = 0; l < h; ++l) lanes[l] = lanes[l] + lanes[l + h];
  }
  return lanes[0];
}

void bf16_to_float_ref(const void* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<const char*>(src) + 2 * i, 2);
    dst[i] = bf16_to_float(bits);
  }
}

void f16_to_float_ref(const void* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<const char*>(src) + 2 * i, 2);
    if ((bits & 0x7fff) > 0x7c00) bits |= 0x200;  // quiet, as the hardware does
    dst[i] = f16_to_float(bits);
  }
}

void float_to_f16_ref(const float* src, int64_t n, void* dst) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = float_to_f16(src[i]);
    std::memcpy(static_cast<char*>(dst) + 2 * i, &bits, 2);
  }
}

void round_bf16_ref(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const Lane high = Lane::max({-kMostBf16}, {x[i]});
    y[i] = vec_math::round_bf16(Lane::min({kMostBf16}, high)).v;
  }
}

void pack_pairs_ref(const float* w, int64_t ld_w, int64_t n, int64_t k, uint16_t* block) {
  pack_pairs_by<Lane>(round_bf16_ref, w, ld_w, n, k, block);
}

float dot_ref(const float* a, const float* b, int64_t k) {
  float lanes[16] = {};
  for (int64_t i = 0; i < k; i += 16) {
    for (int64_t l = 0; l < 16; ++l) {
      const bool inside = i + l < k;
      lanes[l] = std::fma(inside ? a[i + l] : 0.0f, inside ? b[i + l] : 0.0f, lanes[l]);
    }
  }
  return sum_lanes(lanes);
}

void dot_tile_ref(const float* x, int64_t ld_x, int64_t n_x, const float* w, int64_t ld_w,
                  int64_t n_w, int64_t k, float* y, int64_t ld_y) {
  for (int64_t i = 0; i < n_x; ++i) {
    for (int64_t j = 0; j < n_w; ++j) y[i * ld_y + j] = dot_ref(x + i * ld_x, w + j * ld_w, k);
  }
}

void axpy_ref(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::fma(a, x[i], y[i]);
}

void axpy_rows_ref(const float* a, int64_t ld_a, int64_t n_y, const float* v, int64_t ld_v,
                   int64_t n_v, int64_t n, float* y, int64_t ld_y) {
  for (int64_t i = 0; i < n_y; ++i) {
    for (int64_t p = 0; p < n_v; ++p) axpy_ref(a[i * ld_a + p], v + p * ld_v, n, y + i * ld_y);
  }
}

void axpy_rows_half_ref(const float* a, int64_t ld_a, int64_t n_y, const void* v, int64_t ld_v,
                        int64_t n_v, int64_t n, float* y, int64_t ld_y) {
  const auto* halves = static_cast<const std::byte*>(v);
  for (int64_t i = 0; i < n_y; ++i) {
    for (int64_t p = 0; p < n_v; ++p) {
      for (int64_t j = 0; j < n; ++j) {
        y[i * ld_y + j] = std::fma(a[i * ld_a + p], half_at(halves, p * ld_v + j), y[i * ld_y + j]);
      }
    }
  }
}

void subtract_rows_ref(const double* a, int64_t ld_a, int64_t n_y, const double* v, int64_t ld_v,
                       int64_t n_v, int64_t n, double* y, int64_t ld_y) {
  for (int64_t i = 0; i < n_y; ++i) {
    for (int64_t p = 0; p < n_v; ++p) {
      const double factor = -a[i * ld_a + p];
      for (int64_t j = 0; j < n; ++j) {
        y[i * ld_y + j] = std::fma(factor, v[p * ld_v + j], y[i * ld_y + j]);
      }
    }
  }
}

void add_ref(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] + x[i];
}

void scale_ref(float a, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * a;
}

void multiply_ref(const float* a, const float* b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
}

void rms_norm_ref(const float* x, const float* gain, float eps, int64_t n, float* y) {
  const float r = 1.0f / std::sqrt(dot_ref(x, x, n) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) {
    const float scaled = x[i] * r;
    y[i] = gain != nullptr ? scaled * gain[i] : scaled;
  }
}

void layer_norm_ref(const float* x, const float* gain, const float* bias, float eps, int64_t n,
                    float* y) {
  float sums[16] = {};
  for (int64_t i = 0; i < n; ++i) sums[i % 16] = sums[i % 16] + x[i];
  const float mean = sum_lanes(sums) / static_cast<float>(n);
  float squares[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float d = x[i] - mean;
    squares[i % 16] = std::fma(d, d, squares[i % 16]);
  }
  const float r = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) {
    float scaled = (x[i] - mean) * r;
    if (gain != nullptr) scaled = scaled * gain[i];
    if (bias != nullptr) scaled = scaled + bias[i];
    y[i] = scaled;
  }
}

Lane activation_of(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return vec_math::silu(Lane{x});
    case Activation::kGelu:
      return vec_math::gelu(Lane{x});
    case Activation::kGeluTanh:
      return vec_math::gelu_tanh(Lane{x});
    case Activation::kRelu:
      return vec_math::relu(Lane{x});
    case Activation::kRelu2:
      return vec_math::activation<Lane, Activation::kRelu2>(Lane{x});
  }
  return Lane{x};
}

void activate_ref(Activation activation, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = activation_of(activation, x[i]).v;
}

void activate_gated_ref(Activation activation, const float* up, int64_t n, float* gate) {
  for (int64_t i = 0; i < n; ++i) gate[i] = activation_of(activation, gate[i]).v * up[i];
}

void soft_cap_ref(float cap, int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = vec_math::tanh(Lane{x[i] / cap}).v * cap;
}

float max_ref(const float* x, int64_t n) {
  float lanes[16];
  for (float& lane : lanes) lane = -kInfinity;
  for (int64_t i = 0; i < n; ++i) lanes[i % 16] = lanes[i % 16] > x[i] ? lanes[i % 16] : x[i];
  for (int h = 8; h >= 1; h /= 2) {
    for (int l = 0; l < h; ++l) lanes[l] = lanes[l] > lanes[l + h] ? lanes[l] : lanes[l + h];
  }
  return lanes[0];
}

void softmax_ref(float a, int64_t n, float* x, float* lse) {
  scale_ref(a, n, x);
  const float top = max_ref(x, n);
  if (lse != nullptr) *lse = top;
  if (top == -kInfinity) {
    for (int64_t i = 0; i < n; ++i) x[i] = 0;
    return;
  }
  float sums[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_of(x[i] - top);
    sums[i % 16] = sums[i % 16] + x[i];
  }
  const float sum = sum_lanes(sums);
  scale_ref(1.0f / sum, n, x);
  if (lse != nullptr) *lse = top + log_of(sum);
}

float softmax_bf16_ref(float a, int64_t n, float* x, float* lse) {
  scale_ref(a, n, x);
  const float top = max_ref(x, n);
  if (lse != nullptr) *lse = top;
  if (top == -kInfinity) {
    for (int64_t i = 0; i < n; ++i) x[i] = 0;
    return 0;
  }
  float sums[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = vec_math::round_bf16(Lane{exp_of(x[i] - top)}).v;
    sums[i % 16] = sums[i % 16] + x[i];
  }
  const float sum = sum_lanes(sums);
  if (lse != nullptr) *lse = top + log_of(sum);
  return 1.0f / sum;
}

void exp_rows_ref(const ScoreRows& rows, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float *x = rows.x + i * rows.ld, *sums = rows.sums + 16 * i;
    for (int64_t j = 0; j < rows.n_cols; ++j) {
      const bool is_seen = rows.first[i] <= j && j < rows.last[i];
      const float power = std::fma(x[j], rows.to_exponent, -rows.tops[i]);
      x[j] = is_seen ? vec_math::exp2(Lane{power}).v : 0;
      sums[j % 16] = sums[j % 16] + x[j];
    }
  }
}

float log_sum_exp_ref(const float* x, int64_t n) {
  const float top = max_ref(x, n);
  if (top == -kInfinity) return top;
  float sums[16] = {};
  for (int64_t i = 0; i < n; ++i) sums[i % 16] = sums[i % 16] + exp_of(x[i] - top);
  return top + log_of(sum_lanes(sums));
}

void rope_ref(const float* cosine, const float* sine, int64_t n_dims, float* x) {
  const int64_t h = n_dims / 2;
  for (int64_t j = 0; j < h; ++j) {
    const float a = x[j], b = x[j + h];
    x[j] = std::fma(a, cosine[j], -(b * sine[j]));
    x[j + h] = std::fma(b, cosine[j], a * sine[j]);
  }
}

void fwht_rows_ref(int log2_n, int64_t width, float scale, const float* x, float* y) {
  const int64_t n = int64_t{1} << log2_n;
  if (x != y) std::copy_n(x, n * width, y);
  for (int64_t h = 1; h < n; h *= 2) {
    for (int64_t i = 0; i < n * width; ++i) {
      if ((i / width & h) != 0) continue;
      const float a = y[i], b = y[i + h * width];
      y[i] = a + b;
      y[i + h * width] = a - b;
    }
  }
  scale_ref(scale, n * width, y);
}

void fwht_ref(int log2_n, const float* signs, float scale, const float* x, float* y) {
  for (int64_t i = 0; i < int64_t{1} << log2_n; ++i)
    y[i] = signs == nullptr ? x[i] : x[i] * signs[i];
  fwht_rows_ref(log2_n, 1, scale, y, y);
}

void hadamard_mix_ref(const HadamardTerms& terms, const float* x, int64_t width, float* y) {
  const int64_t n_groups = terms.k / 4;
  for (int64_t i = 0; i < terms.k; ++i) {
    for (int64_t c = 0; c < width; ++c) {
      float sum = 0;
      for (int64_t g = 0; g < n_groups; ++g) {
        const float sign = terms.sign[i * n_groups + g];
        const unsigned pattern = terms.pattern[i * n_groups + g];
        float v[4];
        for (int j = 0; j < 4; ++j) {
          const bool differs = j > 0 && (pattern >> (j - 1) & 1) != 0;
          v[j] = (differs ? -1.0f : 1.0f) * x[(4 * g + j) * width + c];
        }
        sum += sign * ((v[0] + v[1]) + (v[2] + v[3]));
      }
      y[i * width + c] = sum;
    }
  }
}

}  // namespace

void fill_ref(KernelTable& table) {
  table.bf16_to_float = bf16_to_float_ref;
  table.f16_to_float = f16_to_float_ref;
  table.float_to_f16 = float_to_f16_ref;
  table.round_bf16 = round_bf16_ref;
  table.pack_pairs = pack_pairs_ref;
  table.dot = dot_ref;
  table.dot_tile = dot_tile_ref;
  table.axpy_rows = axpy_rows_ref;
  table.axpy_rows_half = axpy_rows_half_ref;
  table.subtract_rows = subtract_rows_ref;
  table.axpy = axpy_ref;
  table.add = add_ref;
  table.scale = scale_ref;
  table.multiply = multiply_ref;
  table.rms_norm = rms_norm_ref;
  table.layer_norm = layer_norm_ref;
  table.activate = activate_ref;
  table.activate_gated = activate_gated_ref;
  table.soft_cap = soft_cap_ref;
  table.softmax = softmax_ref;
  table.softmax_bf16 = softmax_bf16_ref;
  table.exp_rows = exp_rows_ref;
  table.log_sum_exp = log_sum_exp_ref;
  table.max = max_ref;
  table.rope = rope_ref;
  table.fwht = fwht_ref;
  table.fwht_rows = fwht_rows_ref;
  table.hadamard_mix = hadamard_mix_ref;
}

}  // namespace quern
