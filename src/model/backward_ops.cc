// SPDX-License-Identifier: Apache-2.0
#include "model/backward_ops.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "model/row_passes.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// A tile of a product: its rows, and columns of which as many rows of v as are taken together stay
// in a second cache (256 KB).
constexpr int64_t kTileRows = 64, kTileCols = 256, kTogether = 256;

}  // namespace

void add_matmul(MatrixView<const float> a, MatrixView<const float> v, MatrixView<float> y) {
  QUERN_CHECK(a.cols == v.rows && a.rows == y.rows && v.cols == y.cols);
  const int64_t n_strips = ceil_div(y.cols, kTileCols);
  parallel_for(ceil_div(y.rows, kTileRows) * n_strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t i = tile / n_strips * kTileRows, j = tile % n_strips * kTileCols;
      const int64_t n = std::min(kTileRows, y.rows - i), m = std::min(kTileCols, y.cols - j);
      for (int64_t p = 0; p < a.cols; p += kTogether) {
        kernels().axpy_rows(a.row(i) + p, a.stride, n, v.row(p) + j, v.stride,
                            std::min(kTogether, a.cols - p), m, y.row(i) + j, y.stride);
      }
    }
  });
}

void linear_backward(const LinearWeight& weight, MatrixView<const float> dy, MatrixView<float> dx) {
  constexpr int64_t kDecoded = 16;  // rows of a piece of decoding
  for (int64_t first = 0; first < weight.n_out; first += kTogether) {
    ScratchMatrix w(std::min(kTogether, weight.n_out - first), weight.n_in);
    parallel_for(w.rows(), kDecoded, [&](int64_t begin, int64_t end) {
      decode_rows(weight, first + begin, end - begin, w.row(begin));
    });
    add_matmul(dy.col_range(first, w.rows()), w.view(), dx);
  }
}

void norm_backward(const NormDesc& norm, const NormWeight& weight, MatrixView<const float> x,
                   MatrixView<float> d) {
  if (norm.kind == NormKind::kNone) return;
  // y = u gain + bias with u = (x - mean) r, r = 1 / sqrt(mean((x - mean)^2) + eps); then
  // dL/dx = r (g - mean(g) - u mean(g u)) for g = gain dL/dy. RMSNorm has no mean, and no mean(g).
  const bool is_centred = norm.kind == NormKind::kLayer;
  const auto n = static_cast<double>(x.cols);
  for_rows(d, [&](int64_t i) {
    const float* in = x.row(i);
    float* out = d.row(i);
    double mean = 0, square = 0, mean_g = 0, mean_gu = 0;
    for (int64_t j = 0; j < x.cols && is_centred; ++j) mean += in[j] / n;
    for (int64_t j = 0; j < x.cols; ++j) square += (in[j] - mean) * (in[j] - mean);
    const double r = 1 / std::sqrt(square / n + norm.eps);
    for (int64_t j = 0; j < x.cols; ++j) {
      if (!weight.gain.empty()) out[j] *= weight.gain[static_cast<size_t>(j)];
      if (is_centred) mean_g += out[j] / n;
      mean_gu += out[j] * (in[j] - mean) * r / n;
    }
    for (int64_t j = 0; j < x.cols; ++j) {
      out[j] = static_cast<float>(r * (out[j] - mean_g - (in[j] - mean) * r * mean_gu));
    }
  });
}

float activation_slope(Activation activation, float at) {
  const double x = at;
  switch (activation) {
    case Activation::kSilu: {
      const double gate = 1 / (1 + std::exp(-x));
      return static_cast<float>(gate * (1 + x * (1 - gate)));
    }
    case Activation::kGelu: {
      const double density = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      return static_cast<float>((1 + std::erf(x / std::numbers::sqrt2)) / 2 + x * density);
    }
    case Activation::kGeluTanh: {
      constexpr double kScale = std::numbers::sqrt2 * std::numbers::inv_sqrtpi, kCubic = 0.044715;
      const double t = std::tanh(kScale * (x + kCubic * x * x * x));
      return static_cast<float>((1 + t) / 2 +
                                x / 2 * (1 - t * t) * kScale * (1 + 3 * kCubic * x * x));
    }
    case Activation::kRelu:
      return x > 0 ? 1.0f : 0.0f;
    case Activation::kRelu2:
      return static_cast<float>(2 * std::max(x, 0.0));
  }
  return 0;
}

namespace {

// Queries of one head that are taken together.
constexpr int64_t kQueries = 64;

// One query head, and the key and value head that its group shares.
struct HeadViews {
  MatrixView<const float> q, k, v;  // [n, d_head]
};

HeadViews head_views(const AttentionDesc& attention, const Heads& heads, int64_t head) {
  const int64_t d = attention.d_head, kv = head / (attention.n_heads / attention.n_kv_heads);
  return {heads.q.view().col_range(head * d, d), heads.k.view().col_range(kv * d, d),
          heads.v.view().col_range(kv * d, d)};
}

// Weights of queries [first, first + count) over the positions before their last one's end, zero
// where a query does not look: [count, first + count]. With a cap also what it makes of slopes:
// d cap(s) / ds = 1 - (cap(s) / cap)^2.
void weigh(const AttentionDesc& attention, const HeadViews& head, int64_t first, int64_t count,
           Matrix<float>& weights, Matrix<float>* slopes) {
  const int64_t n = first + count;
  const auto cap = static_cast<float>(attention.soft_cap);
  weights = Matrix<float>(count, n);
  kernels().dot_tile(head.q.row(first), head.q.stride, count, head.k.data, head.k.stride, n,
                     attention.d_head, weights.data(), n);
  kernels().scale(static_cast<float>(attention.scale), count * n, weights.data());
  if (cap != 0) kernels().soft_cap(cap, count * n, weights.data());
  if (cap != 0 && slopes != nullptr) {
    *slopes = weights;
    for (int64_t i = 0; i < count * n; ++i) {
      float& s = slopes->data()[i];
      s = 1 - s / cap * (s / cap);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    float* row = weights.row(i);
    const int64_t end = first + i + 1;
    const int64_t begin = attention.window > 0 ? std::max<int64_t>(0, end - attention.window) : 0;
    std::fill(row, row + begin, 0.0f);
    kernels().softmax(1, end - begin, row + begin, nullptr);
    std::fill(row + end, row + n, 0.0f);
  }
}

Matrix<float> transposed(const Matrix<float>& x) {
  Matrix<float> t(x.cols(), x.rows());
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) t(j, i) = x(i, j);
  }
  return t;
}

// dL/ds of scores from dL/dP of the weights P that they became, in place:
// P (dP - sum_j P_j dP_j), through the cap and times the scale.
void softmax_backward(const AttentionDesc& attention, const Matrix<float>& weights,
                      const Matrix<float>& slopes, Matrix<float>& d) {
  for (int64_t i = 0; i < d.rows(); ++i) {
    const float *p = weights.row(i), *slope = slopes.empty() ? nullptr : slopes.row(i);
    float* row = d.row(i);
    double mean = 0;
    for (int64_t j = 0; j < d.cols(); ++j) mean += static_cast<double>(p[j]) * row[j];
    for (int64_t j = 0; j < d.cols(); ++j) {
      const double ds = attention.scale * p[j] * (row[j] - mean);
      row[j] = static_cast<float>(slope == nullptr ? ds : ds * slope[j]);
    }
  }
}

// Adds dL/d(q, k, v) of one head to `d`, [n, d_head] each.
void head_backward(const AttentionDesc& attention, const HeadViews& head,
                   MatrixView<const float> d_mixed, MatrixView<float> dq, MatrixView<float> dk,
                   MatrixView<float> dv) {
  const int64_t d = attention.d_head;
  const auto add = [d](const Matrix<float>& a, MatrixView<const float> v, int64_t row,
                       MatrixView<float> y, int64_t to) {
    kernels().axpy_rows(a.data(), a.cols(), a.rows(), v.row(row), v.stride, a.cols(), d, y.row(to),
                        y.stride);
  };
  Matrix<float> weights, slopes;
  for (int64_t first = 0; first < head.q.rows; first += kQueries) {
    const int64_t count = std::min(kQueries, head.q.rows - first), n = first + count;
    weigh(attention, head, first, count, weights, &slopes);
    add(transposed(weights), d_mixed, first, dv, 0);
    Matrix<float> ds(count, n);
    kernels().dot_tile(d_mixed.row(first), d_mixed.stride, count, head.v.data, head.v.stride, n, d,
                       ds.data(), n);
    softmax_backward(attention, weights, slopes, ds);
    add(ds, head.k, 0, dq, first);
    add(transposed(ds), head.q, first, dk, 0);
  }
}

// Of each group of heads the sum, in ascending order.
Matrix<float> sum_groups(const Matrix<float>& x, int64_t group, int64_t d_head) {
  Matrix<float> sum(x.rows(), x.cols() / group);
  for_rows(sum.view(), [&](int64_t i) {
    for (int64_t h = 0; h < x.cols() / d_head; ++h) {
      kernels().add(x.row(i) + h * d_head, d_head, sum.row(i) + h / group * d_head);
    }
  });
  return sum;
}

}  // namespace

Matrix<float> attend_whole(const AttentionDesc& attention, const Heads& heads) {
  const int64_t d = attention.d_head, n_rows = heads.q.rows();
  const int64_t n_tiles = ceil_div(n_rows, kQueries);
  Matrix<float> mixed(n_rows, heads.q.cols());
  parallel_for(attention.n_heads * n_tiles, 1, [&](int64_t begin, int64_t end) {
    Matrix<float> weights;
    for (int64_t job = begin; job < end; ++job) {
      const HeadViews head = head_views(attention, heads, job / n_tiles);
      const int64_t first = job % n_tiles * kQueries, count = std::min(kQueries, n_rows - first);
      weigh(attention, head, first, count, weights, nullptr);
      kernels().axpy_rows(weights.data(), weights.cols(), count, head.v.data, head.v.stride,
                          weights.cols(), d, mixed.row(first) + job / n_tiles * d, mixed.cols());
    }
  });
  return mixed;
}

Heads attend_backward(const AttentionDesc& attention, const Heads& heads,
                      MatrixView<const float> d_mixed) {
  const int64_t d = attention.d_head, n_rows = heads.q.rows(), width = heads.q.cols();
  Matrix<float> dq(n_rows, width), dk(n_rows, width), dv(n_rows, width);  // of each query head
  parallel_for(attention.n_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      head_backward(attention, head_views(attention, heads, h), d_mixed.col_range(h * d, d),
                    dq.view().col_range(h * d, d), dk.view().col_range(h * d, d),
                    dv.view().col_range(h * d, d));
    }
  });
  const int64_t group = attention.n_heads / attention.n_kv_heads;
  return {std::move(dq), sum_groups(dk, group, d), sum_groups(dv, group, d)};
}

}  // namespace quern
