// SPDX-License-Identifier: Apache-2.0
#include "codecs/pvq_metric.h"
#include "codecs/pvq_search.h"

namespace quern {
namespace {

struct Lanes {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
};

}  // namespace

void pvq_search_ref(const float* x, int64_t n, int dim, int pulses, int16_t* y, float* gains) {
  PvqSearchOf<Lanes>::search(x, n, dim, pulses, y, gains);
}

void pvq_refine_ref(const PvqMetric& metric, const float* x, int64_t n, int16_t* y, float* gains) {
  PvqMetricOf<Lanes>::refine(metric, x, n, y, gains);
}

}  // namespace quern
