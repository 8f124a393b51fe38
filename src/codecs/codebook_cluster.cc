// SPDX-License-Identifier: Apache-2.0
// Weighted k-means, the fit of a codebook. A coordinate counts by the importance of its column, in
// the choice of the nearest point and in the mean alike: both lower one objective, the sum of
// weight (x - point)^2. (Published code weighs the choice by 1 / U_tt and the mean by U_tt, one the
// inverse of the other; with H = M D M^T the importance is D_t = 1 / U_tt^2 in both places.)
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "codecs/codebook.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Solves S y = x for a small symmetric S by Gaussian elimination; S is made regular beforehand.
void solve(const double* s, int dim, const double* x, double* y) {
  double a[kMaxCodebookDim][kMaxCodebookDim + 1] = {};
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j < dim; ++j) a[i][j] = s[i * dim + j];
    a[i][dim] = x[i];
  }
  for (int p = 0; p < dim; ++p) {
    for (int i = p + 1; i < dim; ++i) {
      const double factor = a[i][p] / a[p][p];
      for (int j = p; j <= dim; ++j) a[i][j] -= factor * a[p][j];
    }
  }
  for (int p = dim - 1; p >= 0; --p) {
    y[p] = a[p][dim];
    for (int j = p + 1; j < dim; ++j) y[p] -= a[p][j] * y[j];
    y[p] /= a[p][p];
  }
}

// What the vectors are sorted by: their value, or the squared Mahalanobis distance from the mean.
std::vector<double> sort_keys(const CodebookSample& sample) {
  const int64_t n = sample.size();
  const int dim = sample.dim;
  std::vector<double> keys(static_cast<size_t>(n));
  if (dim == 1) {
    for (int64_t i = 0; i < n; ++i) keys[static_cast<size_t>(i)] = sample.x[static_cast<size_t>(i)];
    return keys;
  }
  double mean[kMaxCodebookDim] = {}, s[kMaxCodebookDim * kMaxCodebookDim] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int t = 0; t < dim; ++t) {
      mean[t] += sample.x[static_cast<size_t>(i * dim + t)] / static_cast<double>(n);
    }
  }
  const auto centred = [&](int64_t i, double* x) {
    for (int t = 0; t < dim; ++t) x[t] = sample.x[static_cast<size_t>(i * dim + t)] - mean[t];
  };
  double x[kMaxCodebookDim], y[kMaxCodebookDim], trace = 0;
  for (int64_t i = 0; i < n; ++i) {
    centred(i, x);
    for (int t = 0; t < dim; ++t) {
      for (int u = 0; u < dim; ++u) s[t * dim + u] += x[t] * x[u] / static_cast<double>(n);
    }
  }
  for (int t = 0; t < dim; ++t) trace += s[t * dim + t];
  for (int t = 0; t < dim; ++t) s[t * dim + t] += 1e-9 * trace + 1e-300;
  for (int64_t i = 0; i < n; ++i) {
    centred(i, x);
    solve(s, dim, x, y);
    keys[static_cast<size_t>(i)] = std::inner_product(x, x + dim, y, 0.0);
  }
  return keys;
}

float distance(const CodebookPoints& points, int64_t c, const float* x, const float* weight) {
  float sum = 0;
  for (int t = 0; t < points.dim; ++t) {
    const float difference = x[t] - points.at(c, t);
    const float term = weight[t] * (difference * difference);
    sum = t == 0 ? term : sum + term;
  }
  return sum;
}

}  // namespace

CodebookPoints::CodebookPoints(int64_t k, int dim)
    : k(k), stride((k + 15) / 16 * 16), dim(dim), values(static_cast<size_t>(stride * dim)) {}

int64_t codebook_nearest_ref(const CodebookPoints& points, const float* x, const float* weight) {
  int64_t nearest = 0;
  float least = distance(points, 0, x, weight);
  for (int64_t c = 1; c < points.k; ++c) {
    const float candidate = distance(points, c, x, weight);
    if (candidate < least) {
      least = candidate;
      nearest = c;
    }
  }
  return nearest;
}

CodebookNearest codebook_nearest() {
  return kernels().isa == Isa::kAvx512 ? codebook_nearest_avx512 : codebook_nearest_ref;
}

CodebookPoints codebook_seeds(const CodebookSample& sample, int64_t k) {
  const std::vector<double> keys = sort_keys(sample);
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return keys[static_cast<size_t>(a)] < keys[static_cast<size_t>(b)];
  });
  CodebookPoints points(k, sample.dim);
  for (int64_t c = 0; c < k; ++c) {
    const int64_t place = (2 * c + 1) * sample.size() / (2 * k);
    const int64_t i = order[static_cast<size_t>(place)];
    for (int t = 0; t < sample.dim; ++t) {
      points.at(c, t) = sample.x[static_cast<size_t>(i * sample.dim + t)];
    }
  }
  return points;
}

double codebook_cluster(const CodebookSample& sample, int iterations, CodebookPoints& points) {
  const CodebookNearest nearest = codebook_nearest();
  const int64_t n = sample.size(), k = points.k;
  const int dim = sample.dim;
  std::vector<float> served(static_cast<size_t>(n));
  double last = std::numeric_limits<double>::infinity();
  for (int iteration = 0;; ++iteration) {
    std::vector<double> sum(static_cast<size_t>(k * dim)), mass(static_cast<size_t>(k * dim));
    std::vector<int64_t> count(static_cast<size_t>(k));
    double loss = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float *x = &sample.x[static_cast<size_t>(i * dim)],
                  *weight = &sample.weight[static_cast<size_t>(i * dim)];
      const int64_t c = nearest(points, x, weight);
      served[static_cast<size_t>(i)] = distance(points, c, x, weight);
      loss += served[static_cast<size_t>(i)];
      ++count[static_cast<size_t>(c)];
      for (int t = 0; t < dim; ++t) {
        sum[static_cast<size_t>(c * dim + t)] += static_cast<double>(weight[t]) * x[t];
        mass[static_cast<size_t>(c * dim + t)] += weight[t];
      }
    }
    if (iteration == iterations || !(loss < last * (1 - 1e-5))) return loss;
    last = loss;
    for (int64_t c = 0; c < k; ++c) {
      if (count[static_cast<size_t>(c)] == 0) {
        const int64_t worst = std::max_element(served.begin(), served.end()) - served.begin();
        served[static_cast<size_t>(worst)] = 0;
        for (int t = 0; t < dim; ++t) {
          points.at(c, t) = sample.x[static_cast<size_t>(worst * dim + t)];
        }
        continue;
      }
      for (int t = 0; t < dim; ++t) {
        const auto place = static_cast<size_t>(c * dim + t);
        if (mass[place] > 0) points.at(c, t) = static_cast<float>(sum[place] / mass[place]);
      }
    }
  }
}

}  // namespace quern
