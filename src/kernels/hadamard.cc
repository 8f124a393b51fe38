// SPDX-License-Identifier: Apache-2.0
#include "kernels/hadamard.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/hadamard_matrices.h"

namespace quern {
namespace {

// Had_K is applied densely: K^2 * 2^p additions a vector, two K^2 tables.
constexpr int64_t kMaxOrder = 2048;

constexpr int64_t kPiece = 65536;  // values a thread takes at once
constexpr int64_t kStrip = 64;     // columns of W at once: they stay in cache for all passes

int64_t grain(int64_t n) { return std::max<int64_t>(1, kPiece / n); }

}  // namespace

int64_t grouped_hadamard_size(int64_t n) { return n & -n; }

Result<HadamardPlan> HadamardPlan::make(int64_t n) {
  if (n < 1) return error("hadamard: size {} is not positive", n);
  const int64_t odd = n / grouped_hadamard_size(n);
  for (int64_t k = odd; k <= n && k <= kMaxOrder; k *= 2) {
    if (const auto construction = hadamard_construction(k)) return make_as(n, k, *construction);
  }
  if (n % 4 != 0 && n > 2) {
    return error("hadamard: no Hadamard matrix has order {}: it must be 1, 2 or a multiple of 4",
                 n);
  }
  return error(
      "hadamard: size {} = {} * {}: no matrix of order {} times a power of two up to {} can be "
      "constructed (Paley over prime fields, Williamson of 52, 92, 100, 116, 156, 172)",
      n, odd, n / odd, odd, std::min(n, kMaxOrder));
}

Result<HadamardPlan> HadamardPlan::make_as(int64_t n, int64_t k, std::string_view construction) {
  if (n < 1 || k < 1 || k > kMaxOrder || n % k != 0 ||
      !std::has_single_bit(static_cast<uint64_t>(n / k))) {
    return error("hadamard: size {} is not {} (at most {}) times a power of two", n, k, kMaxOrder);
  }
  auto signs = hadamard_matrix(k, construction);
  if (!signs) return error("hadamard: construction '{}' does not give order {}", construction, k);
  HadamardPlan plan;
  plan.n_ = n;
  plan.k_ = k;
  plan.log2_inner_ = std::countr_zero(static_cast<uint64_t>(n / k));
  plan.construction_ = construction;
  plan.signs_ = *std::move(signs);
  if (k == 1) return plan;
  plan.factors_.resize(plan.signs_.size());
  plan.factors_transposed_.resize(plan.signs_.size());
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const float sign = plan.signs_[static_cast<size_t>(i * k + j)];
      plan.factors_[static_cast<size_t>(i * k + j)] = sign;
      plan.factors_transposed_[static_cast<size_t>(j * k + i)] = sign;
    }
  }
  return plan;
}

// The operator over the first axis of [n, width], in the order of operations that apply_rows has
// too: butterflies, times 1 / sqrt(n), sums over Had_K in ascending order.
template <class T>
struct HadamardAxis {
  const HadamardPlan& plan;
  const std::vector<float>& factors;  // [k, k]
  int64_t width, stride;              // of the rows of x

  void butterflies(T* x, int64_t count) const {
    int64_t h = 1;
    if (width == 1 && stride == 1 && count >= 8) {
      for (int64_t i = 0; i < count; i += 8) butterflies_of_8(x + i);
      h = 8;
    }
    for (; h < count; h *= 2) {
      for (int64_t start = 0; start < count; start += 2 * h) {
        if (stride == width) {
          butterfly(x + start * stride, x + (start + h) * stride, h * width);
        } else {
          for (int64_t r = start; r < start + h; ++r) {
            butterfly(x + r * stride, x + (r + h) * stride, width);
          }
        }
      }
    }
  }

  // h = 1, 2, 4 in registers.
  static void butterflies_of_8(T* x) {
    T v[8];
    for (int i = 0; i < 8; i += 2) {
      v[i] = x[i] + x[i + 1];
      v[i + 1] = x[i] - x[i + 1];
    }
    T u[8];
    for (int i = 0; i < 8; i += 4) {
      for (int j = i; j < i + 2; ++j) {
        u[j] = v[j] + v[j + 2];
        u[j + 2] = v[j] - v[j + 2];
      }
    }
    for (int j = 0; j < 4; ++j) {
      x[j] = u[j] + u[j + 4];
      x[j + 4] = u[j] - u[j + 4];
    }
  }

  static void butterfly(T* __restrict a, T* __restrict b, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const T sum = a[i] + b[i];
      b[i] = a[i] - b[i];
      a[i] = sum;
    }
  }

  void apply(T* x) const {
    const int64_t inner = plan.n_ / plan.k_;
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(plan.n_)));
    for (int64_t i = 0; i < plan.k_; ++i) butterflies(x + i * inner * stride, inner);
    for (int64_t r = 0; r < plan.n_; ++r) {
      for (int64_t c = 0; c < width; ++c) x[r * stride + c] *= scale;
    }
    if (plan.k_ > 1) mix(x, inner);
  }

  // x <- (Had_K (x) I) x.
  void mix(T* x, int64_t inner) const {
    AlignedVector<T> source(static_cast<size_t>(plan.n_ * width));
    for (int64_t r = 0; r < plan.n_; ++r)
      std::copy_n(x + r * stride, width, source.data() + r * width);
    const bool is_dense = stride == width;  // then the inner rows are one
    const int64_t n_parts = is_dense ? 1 : inner, part = is_dense ? inner * width : width;
    for (int64_t i = 0; i < plan.k_; ++i) {
      for (int64_t r = 0; r < n_parts; ++r) {
        sum_rows(factors.data() + i * plan.k_, source.data() + r * part, inner * width, part,
                 x + (i * inner + r) * stride);
      }
    }
  }

  // to[c] = sum_j sign[j] from[j * ld + c] for c < n, eight columns in registers at a time.
  void sum_rows(const float* sign, const T* from, int64_t ld, int64_t n, T* to) const {
    constexpr int kBlock = 8;
    int64_t c = 0;
    for (; c + kBlock <= n; c += kBlock) {
      T sum[kBlock] = {};
      for (int64_t j = 0; j < plan.k_; ++j) {
        const T s = static_cast<T>(sign[j]);
        for (int l = 0; l < kBlock; ++l) sum[l] = sum[l] + s * from[j * ld + c + l];
      }
      std::copy_n(sum, kBlock, to + c);
    }
    for (; c < n; ++c) {
      T sum = 0;
      for (int64_t j = 0; j < plan.k_; ++j) sum = sum + static_cast<T>(sign[j]) * from[j * ld + c];
      to[c] = sum;
    }
  }

  // Rows of x as [n, width] each.
  static void rows(const HadamardPlan& plan, const std::vector<float>& factors, MatrixView<T> x,
                   int64_t width) {
    QUERN_CHECK(x.cols == plan.n_ * width);
    const HadamardAxis axis{plan, factors, width, width};
    parallel_for(x.rows, grain(x.cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) axis.apply(x.row(r));
    });
  }

  static void columns(const HadamardPlan& plan, const std::vector<float>& factors,
                      MatrixView<T> w) {
    QUERN_CHECK(w.rows == plan.n_);
    parallel_for(w.cols, kStrip, [&](int64_t begin, int64_t end) {
      HadamardAxis{plan, factors, end - begin, w.stride}.apply(w.data + begin);
    });
  }
};

void HadamardPlan::rows_of_floats(MatrixView<float> x, const std::vector<float>& factors,
                                  const KernelTable& table) const {
  QUERN_CHECK(x.cols == n_);
  const int64_t inner = n_ / k_;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(n_)));
  parallel_for(x.rows, grain(n_), [&](int64_t begin, int64_t end) {
    AlignedVector<float> source(k_ > 1 ? static_cast<size_t>(n_) : 0);
    for (int64_t r = begin; r < end; ++r) {
      float* row = x.row(r);
      for (int64_t i = 0; i < k_; ++i) table.fwht(log2_inner_, scale, row + i * inner);
      if (k_ == 1) continue;
      std::copy_n(row, n_, source.data());
      std::fill_n(row, n_, 0.0f);
      table.axpy_rows(factors.data(), k_, k_, source.data(), inner, k_, inner, row, inner);
    }
  });
}

void HadamardPlan::apply_rows(MatrixView<float> x, const KernelTable& table) const {
  rows_of_floats(x, factors_, table);
}
void HadamardPlan::apply_rows_transposed(MatrixView<float> x, const KernelTable& table) const {
  rows_of_floats(x, factors_transposed_, table);
}
void HadamardPlan::apply_rows(MatrixView<double> x) const {
  HadamardAxis<double>::rows(*this, factors_, x, 1);
}
void HadamardPlan::apply_rows_transposed(MatrixView<double> x) const {
  HadamardAxis<double>::rows(*this, factors_transposed_, x, 1);
}
void HadamardPlan::apply_columns(MatrixView<double> w) const {
  HadamardAxis<double>::columns(*this, factors_, w);
}
void HadamardPlan::apply_columns_transposed(MatrixView<double> w) const {
  HadamardAxis<double>::columns(*this, factors_transposed_, w);
}
void HadamardPlan::apply_heads(MatrixView<float> x, int64_t d_head) const {
  HadamardAxis<float>::rows(*this, factors_, x, d_head);
}
void HadamardPlan::apply_heads(MatrixView<double> x, int64_t d_head) const {
  HadamardAxis<double>::rows(*this, factors_, x, d_head);
}
void HadamardPlan::apply_heads_transposed(MatrixView<float> x, int64_t d_head) const {
  HadamardAxis<float>::rows(*this, factors_transposed_, x, d_head);
}
void HadamardPlan::apply_heads_transposed(MatrixView<double> x, int64_t d_head) const {
  HadamardAxis<double>::rows(*this, factors_transposed_, x, d_head);
}

Matrix<double> HadamardPlan::to_dense() const {
  Matrix<double> dense(n_, n_);
  const int64_t inner = n_ / k_;
  const double size = 1 / std::sqrt(static_cast<double>(n_));
  for (int64_t i = 0; i < n_; ++i) {
    for (int64_t j = 0; j < n_; ++j) {
      const double sign = signs_[static_cast<size_t>(i / inner * k_ + j / inner)];
      const bool minus = std::popcount(static_cast<uint64_t>((i % inner) & (j % inner))) % 2 != 0;
      dense(i, j) = minus ? -sign * size : sign * size;
    }
  }
  return dense;
}

Result<HeadsHadamard> HeadsHadamard::make(int64_t n_heads, int64_t d_head) {
  QUERN_ASSIGN(HadamardPlan heads, HadamardPlan::make(n_heads));
  QUERN_ASSIGN(HadamardPlan head, HadamardPlan::make(d_head));
  return HeadsHadamard{std::move(heads), std::move(head)};
}

namespace {

// Each head of each row as a row of its own.
template <class T>
void for_heads(const HeadsHadamard& plan, MatrixView<T> x,
               void (*apply)(const HadamardPlan&, MatrixView<T>)) {
  const int64_t n_heads = plan.heads.n(), d_head = plan.head.n();
  QUERN_CHECK(x.cols == n_heads * d_head);
  if (x.stride == x.cols) return apply(plan.head, {x.data, x.rows * n_heads, d_head});
  for (int64_t r = 0; r < x.rows; ++r) apply(plan.head, {x.row(r), n_heads, d_head});
}

template <class T>
void forward(const HadamardPlan& plan, MatrixView<T> x) {
  plan.apply_rows(x);
}
template <class T>
void backward(const HadamardPlan& plan, MatrixView<T> x) {
  plan.apply_rows_transposed(x);
}

}  // namespace

void HeadsHadamard::apply_rows(MatrixView<float> x) const {
  for_heads<float>(*this, x, forward<float>);
  heads.apply_heads(x, head.n());
}
void HeadsHadamard::apply_rows(MatrixView<double> x) const {
  for_heads<double>(*this, x, forward<double>);
  heads.apply_heads(x, head.n());
}
void HeadsHadamard::apply_rows_transposed(MatrixView<float> x) const {
  for_heads<float>(*this, x, backward<float>);
  heads.apply_heads_transposed(x, head.n());
}
void HeadsHadamard::apply_rows_transposed(MatrixView<double> x) const {
  for_heads<double>(*this, x, backward<double>);
  heads.apply_heads_transposed(x, head.n());
}

}  // namespace quern
