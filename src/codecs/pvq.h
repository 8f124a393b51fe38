// SPDX-License-Identifier: Apache-2.0
// The seams between pvq and its searches.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace quern {

// For each of n vectors x [n, dim], dim <= 128: a point y [n, dim] with sum |y_i| = pulses (<= 255)
// near the direction of x, and the length of x along it, gains = <x, y> / |y|. Any numbers give
// some point; x = 0 gives (pulses, 0, ...) and gain 0.
using PvqSearch = void (*)(const float* x, int64_t n, int dim, int pulses, int16_t* y,
                           float* gains);
PvqSearch pvq_search(Isa isa);
void pvq_search_ref(const float* x, int64_t n, int dim, int pulses, int16_t* y, float* gains);
void pvq_search_avx2(const float* x, int64_t n, int dim, int pulses, int16_t* y, float* gains);
void pvq_search_avx512(const float* x, int64_t n, int dim, int pulses, int16_t* y, float* gains);

// A symmetric positive metric M of the first `width` places of points of `dim`.
struct PvqMetric {
  const float* values;  // [dim, stride()], zeros outside of [width, width]
  int dim, width;
  int64_t stride() const { return (dim + 15) / 16 * 16; }
};
// Moves pulses of the points y [n, dim] while that raises <x, M y>^2 / <y, M y>; then gains =
// |y| <x, M y> / <y, M y>, the length in the direction y that is nearest to x in the metric. Where
// that is no positive number, y and gain stay. x [n, dim].
using PvqRefine = void (*)(const PvqMetric& metric, const float* x, int64_t n, int16_t* y,
                           float* gains);
PvqRefine pvq_refine(Isa isa);
void pvq_refine_ref(const PvqMetric& metric, const float* x, int64_t n, int16_t* y, float* gains);
void pvq_refine_avx2(const PvqMetric& metric, const float* x, int64_t n, int16_t* y, float* gains);
void pvq_refine_avx512(const PvqMetric& metric, const float* x, int64_t n, int16_t* y,
                       float* gains);

}  // namespace quern
