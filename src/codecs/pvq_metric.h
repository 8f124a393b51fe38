// SPDX-License-Identifier: Apache-2.0
// The search of pvq in a metric M, compiled once per instruction set like pvq_search.h.
//
// Wanted is the y with sum |y_i| = k that maximises <x, M y>^2 / <y, M y>. From a given point,
// single pulses move to another place, or turn their sign, while that helps, the best move first.
// With c = <x, M y> / <y, M y>, u = M x / c, r = u - M y and q = <y, M y>, taking a pulse away at
// place i (a = -sign y_i) and putting one of sign s at place j raises the ratio by c^2 q / q' times
//     2 a r_i - M_ii + 2 s (r_j - a M_ij) - M_jj + (a u_i + s u_j)^2 / q.
// s is the sign of y_j, or where y_j = 0 that of r_j - a M_ij. Place i itself may be j: the sign
// turns.
//
// Everything runs in float, place by place without sums across lanes, or in double, one by one: the
// same points at every instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "codecs/pvq.h"

namespace quern {
namespace {  // NOLINT: internal linkage, since each source compiles its own

template <class Lanes>
struct PvqMetricOf {
  using Floats = typename Lanes::Floats;
  using Ints = typename Lanes::Ints;
  static constexpr int kLanes = sizeof(Ints) / 4;
  static constexpr int kMost = 128 / kLanes;  // vectors
  static constexpr int kMoves = 512;
  static constexpr float kLeastGain = 1e-5f;  // of a move, of q; less is rounding
  static constexpr int32_t kSign = INT32_MIN;
  static constexpr int kPlaces = 256;  // more than there are

  const PvqMetric& m;
  int n_vectors;
  int64_t stride;
  float diagonal[128];  // huge where no pulse may go
  float x_m[128];       // M x
  float y_m[128];       // M y
  float u[128], r[128];
  int32_t sign[128];  // of y_i as a bit
  int32_t open[128];  // all that may be the sign of a pulse: kSign where y_i = 0, else 0
  double p = 0, q = 0;

  explicit PvqMetricOf(const PvqMetric& metric)
      : m(metric), n_vectors((metric.dim + kLanes - 1) / kLanes), stride(m.stride()) {
    for (int i = 0; i < 128; ++i) {
      diagonal[i] = i < m.width ? m.values[i * stride + i] : 1e30f;
    }
  }

  static Floats load(const float* src) {
    Floats v;
    std::memcpy(&v, src, sizeof v);
    return v;
  }
  static Ints load(const int32_t* src) {
    Ints v;
    std::memcpy(&v, src, sizeof v);
    return v;
  }

  // y += factor * row i of M
  void add_row(int i, float factor, float* y) const {
    for (int v = 0; v < n_vectors; ++v) {
      const Floats sum = load(y + v * kLanes) + load(m.values + i * stride + v * kLanes) * factor;
      std::memcpy(y + v * kLanes, &sum, sizeof sum);
    }
  }

  void set_signs(int i, int y) {
    sign[i] = y < 0 ? kSign : 0;
    open[i] = y == 0 ? kSign : 0;
  }

  void start(const float* x, const int16_t* y) {
    std::memset(x_m, 0, sizeof x_m);
    std::memset(y_m, 0, sizeof y_m);
    for (int i = 0; i < m.dim; ++i) {
      add_row(i, x[i], x_m);
      if (y[i] != 0) add_row(i, static_cast<float>(y[i]), y_m);
    }
    p = q = 0;
    for (int i = 0; i < 128; ++i) {
      const int pulses = i < m.dim ? y[i] : 0;
      set_signs(i, pulses);
      p += static_cast<double>(x_m[i]) * pulses;
      q += static_cast<double>(y_m[i]) * pulses;
    }
  }

  // u and r for the point as it is.
  void aim() {
    const auto inverse = static_cast<float>(q / p);
    for (int v = 0; v < n_vectors * kLanes; v += kLanes) {
      const Floats wanted = load(x_m + v) * inverse, rest = wanted - load(y_m + v);
      std::memcpy(u + v, &wanted, sizeof wanted);
      std::memcpy(r + v, &rest, sizeof rest);
    }
  }

  struct Move {
    int from = -1, to = 0;
    int added = 0;  // the sign of the pulse put to `to`
  };

  Move best_move(const int16_t* y) {
    const auto share = static_cast<float>(1 / q);
    Floats most = Floats{} + kLeastGain * static_cast<float>(q);
    Ints where = Ints{} - 1, lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    for (int i = 0; i < m.dim; ++i) {
      if (y[i] == 0) continue;
      const float a = y[i] > 0 ? -1.0f : 1.0f;
      const float taken = 2 * a * r[i] - (i < m.width ? diagonal[i] : 0), a_u = a * u[i];
      if (y[i] == 1 || y[i] == -1) set_signs(i, 0);
      for (int v = 0; v < n_vectors * kLanes; v += kLanes) {
        const Floats left = load(r + v) - load(m.values + i * stride + v) * a;
        const Ints bits = std::bit_cast<Ints>(left);
        const Ints turn = (bits & load(open + v)) | load(sign + v);
        const Floats put = std::bit_cast<Floats>(bits ^ turn);
        const Floats moved = std::bit_cast<Floats>(std::bit_cast<Ints>(load(u + v)) ^ turn) + a_u;
        const Floats gain = (put + put - load(diagonal + v) + taken) + moved * moved * share;
        const auto is_more = gain > most;
        most = is_more ? gain : most;
        where = is_more ? lane + (i * kPlaces + v) : where;
      }
      set_signs(i, y[i]);
    }
    Move move;
    int first = INT32_MAX;
    float best = 0;
    for (int l = 0; l < kLanes; ++l) {  // of equals the one with the first places
      if (where[l] < 0 || most[l] < best || (most[l] == best && where[l] > first)) continue;
      best = most[l];
      first = where[l];
    }
    if (best == 0) return move;
    move = {first / kPlaces, first % kPlaces, 0};
    const float a = y[move.from] > 0 ? -1.0f : 1.0f;
    const int left = y[move.to] + (move.to == move.from ? static_cast<int>(a) : 0);
    const float rest = r[move.to] - m.values[move.from * stride + move.to] * a;
    move.added = left != 0 ? (left > 0 ? 1 : -1) : std::signbit(rest) ? -1 : 1;
    return move;
  }

  // Makes the move if it raises <x, M y>^2 / <y, M y>.
  bool make(const Move& move, int16_t* y) {
    const int i = move.from, j = move.to, a = y[i] > 0 ? -1 : 1, s = move.added;
    const double new_p = p + a * static_cast<double>(x_m[i]) + s * static_cast<double>(x_m[j]);
    const double new_q = q + 2.0 * a * y_m[i] + 2.0 * s * y_m[j] + m.values[i * stride + i] +
                         m.values[j * stride + j] + 2.0 * a * s * m.values[i * stride + j];
    if (!(new_p > 0 && new_q > 0 && new_p * new_p * q > p * p * new_q)) return false;
    p = new_p;
    q = new_q;
    add_row(i, static_cast<float>(a), y_m);
    add_row(j, static_cast<float>(s), y_m);
    y[i] = static_cast<int16_t>(y[i] + a);
    y[j] = static_cast<int16_t>(y[j] + s);
    set_signs(i, y[i]);
    set_signs(j, y[j]);
    return true;
  }

  float refine_one(const float* x, int16_t* y) {
    start(x, y);
    const bool is_sound = p > 0 && q > 0 && std::isfinite(p) && std::isfinite(q);
    for (int n_moves = 0; is_sound && n_moves < kMoves; ++n_moves) {
      aim();
      const Move move = best_move(y);
      if (move.from < 0 || !make(move, y)) break;
    }
    int norm = 0;
    for (int i = 0; i < m.dim; ++i) norm += y[i] * y[i];
    return is_sound ? static_cast<float>(p / q * std::sqrt(static_cast<double>(norm))) : 0;
  }

  static void refine(const PvqMetric& metric, const float* x, int64_t n, int16_t* y, float* gains) {
    PvqMetricOf one(metric);
    for (int64_t i = 0; i < n; ++i) {
      const float gain = one.refine_one(x + i * metric.dim, y + i * metric.dim);
      if (gain > 0) gains[i] = gain;
    }
  }
};

}  // namespace
}  // namespace quern
