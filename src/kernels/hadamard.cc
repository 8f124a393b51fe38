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
constexpr int64_t kMaxOrder = 1024;  // factors of megabytes; real sizes need 924 at most

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
  plan.factor_ = factor_of(plan.signs_, k, false);
  plan.transposed_ = factor_of(plan.signs_, k, true);
  return plan;
}

HadamardPlan::Factor HadamardPlan::factor_of(const std::vector<int8_t>& signs, int64_t k,
                                             bool is_transposed) {
  QUERN_CHECK(k % 4 == 0);  // as Hadamard matrices of an order above two
  Factor factor;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      factor.rows.push_back(signs[static_cast<size_t>(is_transposed ? j * k + i : i * k + j)]);
    }
    const double* row = factor.rows.data() + i * k;
    for (int64_t j = 0; j < k; j += 4) {
      unsigned pattern = 0;
      for (int64_t b = 1; b < 4; ++b) pattern |= row[j + b] != row[j] ? 1u << (b - 1) : 0u;
      factor.sign.push_back(static_cast<float>(row[j]));
      factor.pattern.push_back(static_cast<uint8_t>(pattern));
    }
  }
  return factor;
}

// The operator over the first axis of [n, width] in double.
struct HadamardAxis {
  const HadamardPlan& plan;
  const std::vector<double>& factors;  // [k, k]
  int64_t width, stride;               // of the rows of x

  void butterflies(double* x, int64_t count) const {
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
  static void butterflies_of_8(double* x) {
    double v[8];
    for (int i = 0; i < 8; i += 2) {
      v[i] = x[i] + x[i + 1];
      v[i + 1] = x[i] - x[i + 1];
    }
    double u[8];
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

  static void butterfly(double* __restrict a, double* __restrict b, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const double sum = a[i] + b[i];
      b[i] = a[i] - b[i];
      a[i] = sum;
    }
  }

  void apply(double* x) const {
    const int64_t inner = plan.n_ / plan.k_;
    const double scale = 1 / std::sqrt(static_cast<double>(plan.n_));
    for (int64_t i = 0; i < plan.k_; ++i) butterflies(x + i * inner * stride, inner);
    for (int64_t r = 0; r < plan.n_; ++r) {
      for (int64_t c = 0; c < width; ++c) x[r * stride + c] *= scale;
    }
    if (plan.k_ > 1) mix(x, inner);
  }

  // x <- (Had_K (x) I) x.
  void mix(double* x, int64_t inner) const {
    AlignedVector<double> source(static_cast<size_t>(plan.n_ * width));
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
  void sum_rows(const double* sign, const double* from, int64_t ld, int64_t n, double* to) const {
    constexpr int kBlock = 8;
    int64_t c = 0;
    for (; c + kBlock <= n; c += kBlock) {
      double sum[kBlock] = {};
      for (int64_t j = 0; j < plan.k_; ++j) {
        for (int l = 0; l < kBlock; ++l) sum[l] = sum[l] + sign[j] * from[j * ld + c + l];
      }
      std::copy_n(sum, kBlock, to + c);
    }
    for (; c < n; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < plan.k_; ++j) sum = sum + sign[j] * from[j * ld + c];
      to[c] = sum;
    }
  }

  // Rows of x as [n, width] each.
  static void rows(const HadamardPlan& plan, const std::vector<double>& factors,
                   MatrixView<double> x, int64_t width) {
    QUERN_CHECK(x.cols == plan.n_ * width);
    const HadamardAxis axis{plan, factors, width, width};
    parallel_for(x.rows, grain(x.cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) axis.apply(x.row(r));
    });
  }

  static void columns(const HadamardPlan& plan, const std::vector<double>& factors,
                      MatrixView<double> w) {
    QUERN_CHECK(w.rows == plan.n_);
    parallel_for(w.cols, kStrip, [&](int64_t begin, int64_t end) {
      HadamardAxis{plan, factors, end - begin, w.stride}.apply(w.data + begin);
    });
  }
};

// Rows of [n, width] each.
struct HadamardPlan::Rows {
  const Factor& factor;
  const KernelTable& table;
  int64_t width = 1;
  const float* signs = nullptr;  // for a width of 1
};

void HadamardPlan::rows_of_floats(MatrixView<const float> x, MatrixView<float> y,
                                  const Rows& how) const {
  QUERN_CHECK(x.cols == n_ * how.width && y.cols == x.cols && y.rows == x.rows);
  const int64_t inner = n_ / k_ * how.width;
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(n_)));
  const HadamardTerms terms{k_, how.factor.sign.data(), how.factor.pattern.data()};
  parallel_for(x.rows, grain(x.cols), [&](int64_t begin, int64_t end) {
    thread_local AlignedVector<float> between;  // the two factors
    if (k_ > 1) between.resize(std::max(between.size(), static_cast<size_t>(x.cols)));
    for (int64_t r = begin; r < end; ++r) {
      float* to = k_ > 1 ? between.data() : y.row(r);
      for (int64_t i = 0; i < n_ * how.width; i += inner) {
        if (how.width > 1) {
          how.table.fwht_rows(log2_inner_, how.width, scale, x.row(r) + i, to + i);
        } else {
          how.table.fwht(log2_inner_, how.signs == nullptr ? nullptr : how.signs + i, scale,
                         x.row(r) + i, to + i);
        }
      }
      if (k_ > 1) how.table.hadamard_mix(terms, between.data(), inner, y.row(r));
    }
  });
}

void HadamardPlan::apply_rows(MatrixView<float> x, const KernelTable& table) const {
  rows_of_floats(x, x, {factor_, table});
}
void HadamardPlan::apply_rows(MatrixView<const float> x, MatrixView<float> y,
                              const KernelTable& table) const {
  rows_of_floats(x, y, {factor_, table});
}
void HadamardPlan::apply_signed_rows(MatrixView<const float> x, const float* signs,
                                     MatrixView<float> y, const KernelTable& table) const {
  rows_of_floats(x, y, {factor_, table, 1, signs});
}
void HadamardPlan::apply_rows_transposed(MatrixView<float> x, const KernelTable& table) const {
  rows_of_floats(x, x, {transposed_, table});
}
void HadamardPlan::apply_rows(MatrixView<double> x) const {
  HadamardAxis::rows(*this, factor_.rows, x, 1);
}
void HadamardPlan::apply_rows_transposed(MatrixView<double> x) const {
  HadamardAxis::rows(*this, transposed_.rows, x, 1);
}
void HadamardPlan::apply_columns(MatrixView<double> w) const {
  HadamardAxis::columns(*this, factor_.rows, w);
}
void HadamardPlan::apply_columns_transposed(MatrixView<double> w) const {
  HadamardAxis::columns(*this, transposed_.rows, w);
}
void HadamardPlan::apply_heads(MatrixView<float> x, int64_t d_head,
                               const KernelTable& table) const {
  rows_of_floats(x, x, {factor_, table, d_head});
}
void HadamardPlan::apply_heads(MatrixView<const float> x, int64_t d_head, MatrixView<float> y,
                               const KernelTable& table) const {
  rows_of_floats(x, y, {factor_, table, d_head});
}
void HadamardPlan::apply_heads(MatrixView<double> x, int64_t d_head) const {
  HadamardAxis::rows(*this, factor_.rows, x, d_head);
}
void HadamardPlan::apply_heads_transposed(MatrixView<float> x, int64_t d_head,
                                          const KernelTable& table) const {
  rows_of_floats(x, x, {transposed_, table, d_head});
}
void HadamardPlan::apply_heads_transposed(MatrixView<double> x, int64_t d_head) const {
  HadamardAxis::rows(*this, transposed_.rows, x, d_head);
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
