// SPDX-License-Identifier: Apache-2.0
// Operators that are matrices: one for a whole stretch (dense), or one for each block of it.
// A block diagonal whose blocks are all alike is `dense` of the block's size.
//
// A matrix is rounded to single precision, as files hold it, but for random orthogonal ones: the
// stream's norm would notice the rounding. Its inverse is computed in double when
// it is first asked for, which is where weights are folded: a runtime needs none, but to leave the
// residual basis, and there an orthogonal matrix is turned back by its transpose.
#include <mutex>
#include <numeric>

#include "base/random.h"
#include "kernels/kernels.h"
#include "linalg/decompose.h"
#include "tensor/scratch.h"
#include "transforms/operator.h"
#include "transforms/operator_data.h"

namespace quern {
namespace {

// M^T of orthogonal matrices that were rounded to single precision is their inverse to this.
constexpr double kOrthogonal = 1e-5;

class Blocks final : public Operator {
 public:
  // blocks: [n_blocks, block, block]
  Blocks(int64_t n_blocks, int64_t block, std::vector<double> blocks)
      : n_blocks_(n_blocks), block_(block), matrix_(std::move(blocks)) {
    transposed_.resize(matrix_.size());
    for (int64_t b = 0; b < n_blocks_; ++b) {
      for (int64_t i = 0; i < block_; ++i) {
        for (int64_t j = 0; j < block_; ++j) {
          transposed_[at(b, j, i)] = static_cast<float>(matrix_[at(b, i, j)]);
        }
      }
    }
  }
  bool is_orthogonal() const override {
    std::call_once(checked_, [this] { is_orthogonal_ = keeps_lengths(); });
    return is_orthogonal_;
  }
  int64_t size() const override { return n_blocks_ * block_; }
  void apply(float* x, int64_t count) const override { multiply(transposed_.data(), x, count); }
  void apply(double* x, int64_t count) const override { multiply_transposed(x, count); }
  void apply_to(const float* x, int64_t count, float* y) const override {
    multiply(transposed_.data(), x, count, y);
  }
  void apply_inverse(float* x, int64_t count) const override {
    if (is_orthogonal()) {
      multiply(matrix_.data(), x, count);
    } else {
      multiply(inverse().of_inverse.data(), x, count);
    }
  }
  void apply_inverse(double* x, int64_t count) const override {
    multiply(inverse().of_inverse.data(), x, count);
  }
  void apply_inverse_transpose(float* x, int64_t count) const override {
    multiply(inverse().of_inverse_transpose.data(), x, count);
  }
  void apply_inverse_transpose(double* x, int64_t count) const override {
    multiply(inverse().of_inverse_transpose.data(), x, count);
  }
  int64_t flops() const override { return 2 * size() * block_; }
  int64_t bytes() const override { return size() * block_ * int64_t{sizeof(float)}; }
  Json to_json() const override {
    if (n_blocks_ == 1) return {{"op", "dense"}, {"size", block_}};
    return {{"op", "block_diagonal"}, {"size", size()}, {"block", block_}};
  }
  std::vector<OperatorTensor> tensors() const override {
    if (n_blocks_ == 1) return {real_tensor("matrix", {block_, block_}, matrix_)};
    return {real_tensor("blocks", {n_blocks_, block_, block_}, matrix_)};
  }
  // Fails where a block is singular.
  Status invert() const { return inverse().status; }

 private:
  size_t at(int64_t b, int64_t i, int64_t j) const {
    return static_cast<size_t>((b * block_ + i) * block_ + j);
  }

  // x_b <- x_b A_b for every block; a is [n_blocks, block, block].
  template <class T, class A>
  void multiply(const A* a, T* x, int64_t count) const {
    std::vector<T> y(static_cast<size_t>(block_));
    for (int64_t start = 0; start < count; start += block_) {
      const int64_t b = start / block_ % n_blocks_;
      std::fill(y.begin(), y.end(), T(0));
      for (int64_t i = 0; i < block_; ++i) add(x[start + i], a + at(b, i, 0), y.data());
      std::copy(y.begin(), y.end(), x + start);
    }
  }
  // x_b <- x_b M^T, exactly
  void multiply_transposed(double* x, int64_t count) const {
    std::vector<double> y(static_cast<size_t>(block_));
    for (int64_t start = 0; start < count; start += block_) {
      const int64_t b = start / block_ % n_blocks_;
      for (int64_t i = 0; i < block_; ++i) {
        const double* row = matrix_.data() + at(b, i, 0);
        y[static_cast<size_t>(i)] = std::inner_product(row, row + block_, x + start, 0.0);
      }
      std::copy(y.begin(), y.end(), x + start);
    }
  }
  // Floats go through the kernel that keeps several stretches in registers: the same sums.
  static constexpr int64_t kRows = 32;
  void multiply(const float* a, float* x, int64_t count) const {
    const int64_t n_rows = count / size();
    thread_local AlignedVector<float> memory;
    float* from = grown(memory, std::min(kRows, n_rows) * size());
    for (int64_t first = 0; first < n_rows; first += kRows) {
      const int64_t n = std::min(kRows, n_rows - first) * size();
      std::copy_n(x + first * size(), n, from);
      multiply(a, from, n, x + first * size());
    }
  }
  void multiply(const float* a, const float* x, int64_t count, float* y) const {
    std::fill_n(y, count, 0.0f);
    const int64_t n_rows = count / size();
    for (int64_t first = 0; first < n_rows; first += kRows) {
      for (int64_t b = 0; b < n_blocks_; ++b) {
        const int64_t start = first * size() + b * block_;
        kernels().axpy_rows(x + start, size(), std::min(kRows, n_rows - first), a + at(b, 0, 0),
                            block_, block_, block_, y + start, size());
      }
    }
  }
  template <class T, class A>
  void add(T s, const A* row, T* y) const {
    for (int64_t j = 0; j < block_; ++j) y[j] += static_cast<T>(s * row[j]);
  }

  // |x M^T M - x| of a few random vectors: n^2 operations for a proof that holds but by chance.
  bool keeps_lengths() const {
    Random random(1);
    std::vector<double> x(static_cast<size_t>(size())), y;
    for (int probe = 0; probe < 4; ++probe) {
      for (double& value : x) value = random.gaussian();
      y = x;
      multiply_transposed(y.data(), size());
      multiply(matrix_.data(), y.data(), size());
      double difference = 0, energy = 0;
      for (size_t j = 0; j < x.size(); ++j) {
        difference += (y[j] - x[j]) * (y[j] - x[j]);
        energy += x[j] * x[j];
      }
      if (!(difference <= kOrthogonal * kOrthogonal * energy)) return false;
    }
    return true;
  }

  struct Inverse {
    std::vector<double> of_inverse, of_inverse_transpose;  // as `multiply` wants them
    Status status;
  };
  const Inverse& inverse() const {
    std::call_once(inverted_, [this] {
      inverse_.of_inverse.resize(matrix_.size());
      inverse_.of_inverse_transpose.resize(matrix_.size());
      for (int64_t b = 0; b < n_blocks_; ++b) {
        Matrix<double> m(block_, block_);
        std::copy_n(matrix_.begin() + static_cast<std::ptrdiff_t>(at(b, 0, 0)), block_ * block_,
                    m.data());
        const auto inverted = quern::inverse(m.view());
        if (!inverted) {
          inverse_.status = tl::unexpected(inverted.error());
          return;
        }
        for (int64_t i = 0; i < block_; ++i) {
          for (int64_t j = 0; j < block_; ++j) {
            // x M^-T and x M^-1
            inverse_.of_inverse[at(b, i, j)] = (*inverted)(j, i);
            inverse_.of_inverse_transpose[at(b, i, j)] = (*inverted)(i, j);
          }
        }
      }
    });
    return inverse_;
  }

  int64_t n_blocks_, block_;
  std::vector<double> matrix_;     // [n_blocks, block, block]
  std::vector<float> transposed_;  // of each block
  mutable std::once_flag checked_, inverted_;
  mutable bool is_orthogonal_ = false;
  mutable Inverse inverse_;
};

Result<OperatorPtr> make(int64_t n_blocks, int64_t block, std::vector<double> values) {
  auto op = std::make_shared<Blocks>(n_blocks, block, std::move(values));
  QUERN_TRY(op->invert());
  return op;
}

std::vector<double> rounded(const double* values, int64_t n) {
  std::vector<double> result(values, values + n);
  for (double& value : result) value = static_cast<double>(static_cast<float>(value));
  return result;
}

Result<OperatorPtr> read_dense(const Json& json, const FindTensor& find) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(std::vector<double> matrix, read_reals(find, "matrix", {size, size}));
  return std::make_shared<Blocks>(1, size, std::move(matrix));
}

Result<OperatorPtr> read_block_diagonal(const Json& json, const FindTensor& find) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(const int64_t block, json_int(json, "block", 1, size));
  if (size % block != 0) return error("basis: blocks of {} do not divide {}", block, size);
  QUERN_ASSIGN(std::vector<double> blocks,
               read_reals(find, "blocks", {size / block, block, block}));
  return std::make_shared<Blocks>(size / block, block, std::move(blocks));
}

}  // namespace

Result<OperatorPtr> make_dense(MatrixView<const double> matrix) {
  Matrix<double> copy(matrix.rows, matrix.cols);
  for (int64_t i = 0; i < matrix.rows; ++i) std::copy_n(matrix.row(i), matrix.cols, copy.row(i));
  return make(1, matrix.rows, rounded(copy.data(), matrix.rows * matrix.cols));
}

Result<OperatorPtr> make_block_diagonal(std::span<const Matrix<double>> blocks) {
  const int64_t block = blocks[0].rows();
  std::vector<double> all;
  for (const Matrix<double>& one : blocks) {
    const std::vector<double> values = rounded(one.data(), block * block);
    all.insert(all.end(), values.begin(), values.end());
  }
  return make(static_cast<int64_t>(blocks.size()), block, std::move(all));
}

Result<OperatorPtr> make_random_orthogonal(int64_t size, uint64_t seed, uint64_t stream) {
  Random random(seed, stream);
  const Matrix<double> q = random_orthogonal(size, random);
  return make(1, size, std::vector<double>(q.data(), q.data() + size * size));
}

extern const OperatorInfo dense_operator_info, block_diagonal_operator_info;
const OperatorInfo dense_operator_info = {"dense", read_dense};
const OperatorInfo block_diagonal_operator_info = {"block_diagonal", read_block_diagonal};

}  // namespace quern
