// SPDX-License-Identifier: Apache-2.0
// The seam between pvq and its searches.
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

}  // namespace quern
