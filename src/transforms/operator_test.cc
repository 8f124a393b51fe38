// SPDX-License-Identifier: Apache-2.0
// Every family of operators against the dense matrix it stands for.
#include "transforms/operator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/float_types.h"
#include "base/random.h"
#include "linalg/decompose.h"

namespace quern {
namespace {

// Sums of at most 400 terms of order 1, in double.
constexpr double kTolerance = 1e-12;

Matrix<double> random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  Matrix<double> m(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) m.data()[i] = random.gaussian();
  return m;
}

// Well conditioned and not symmetric.
Matrix<double> invertible(int64_t n, uint64_t seed) {
  Matrix<double> m = random_matrix(n, n, seed);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) m(i, j) = 0.3 * m(i, j) / std::sqrt(double(n)) + (i == j);
  }
  return m;
}

std::vector<int32_t> shuffled(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

std::vector<float> scales(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> scale(static_cast<size_t>(n));
  for (float& s : scale) s = static_cast<float>(random.sign() * std::exp(2 * random.gaussian()));
  return scale;
}

double in_half(double value) { return f16_to_float(float_to_f16(static_cast<float>(value))); }

struct Case {
  std::string name;
  OperatorPtr op;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 44, 120}) {
    const auto seed = static_cast<uint64_t>(n);
    const Matrix<double> square = invertible(n, seed);
    const auto add = [&](const char* name, Result<OperatorPtr> op) {
      if (op) all.push_back({fmt::format("{} {}", name, n), *op});
    };
    add("signs", make_signs(n, seed, 1));
    add("hadamard", make_hadamard(n));
    add("head_axis", make_head_axis(n, 3));
    add("diagonal", make_diagonal(scales(n, seed)));
    add("permutation", make_permutation(shuffled(n, seed)));
    add("dense", make_dense(std::as_const(square).view()));
    Matrix<double> halves = square;
    for (int64_t i = 0; i < n * n; ++i) halves.data()[i] = in_half(halves.data()[i]);
    add("dense of halves", make_dense(std::as_const(halves).view()));
    add("haar", make_random_orthogonal(n, seed, 2));
    const std::vector<Matrix<double>> blocks = {invertible(n, 1), invertible(n, 2)};
    add("block_diagonal", make_block_diagonal(blocks));
    add("dct", make_dct(n));
  }
  return all;
}

// M of x -> x M^T: column j is the image of unit vector j.
Matrix<double> matrix_of(const Operator& op) {
  const int64_t n = op.size();
  Matrix<double> m(n, n);
  for (int64_t j = 0; j < n; ++j) {
    std::vector<double> x(static_cast<size_t>(n), 0.0);
    x[static_cast<size_t>(j)] = 1;
    op.apply(x.data(), n);
    for (int64_t i = 0; i < n; ++i) m(i, j) = x[static_cast<size_t>(i)];
  }
  return m;
}

// x M^T, densely
Matrix<double> times_transposed(const Matrix<double>& x, const Matrix<double>& m) {
  Matrix<double> y(x.rows(), m.rows());
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t k = 0; k < m.rows(); ++k) {
      for (int64_t j = 0; j < m.cols(); ++j) y(i, k) += x(i, j) * m(k, j);
    }
  }
  return y;
}

template <class T>
double worst(const T* got, const double* expected, int64_t n) {
  double largest = 1, difference = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    difference = std::max(difference, std::abs(double(got[i]) - expected[i]));
  }
  return difference / largest;
}

Matrix<double> transposed(const Matrix<double>& m) {
  Matrix<double> t(m.cols(), m.rows());
  for (int64_t i = 0; i < m.rows(); ++i) {
    for (int64_t j = 0; j < m.cols(); ++j) t(j, i) = m(i, j);
  }
  return t;
}

TEST(Operator, FromOnePlaceToAnotherHasTheBitsOfInPlace) {
  for (const Case& c : cases()) {
    for (const int64_t stretches : {1, 5, 40}) {
      const int64_t count = stretches * c.op->size();
      Random random(6);
      std::vector<float> x(static_cast<size_t>(count)), y(x.size(), 7.0f);
      for (float& value : x) value = static_cast<float>(random.gaussian());
      std::vector<float> in_place = x;
      const std::vector<float> before = x;
      c.op->apply_to(x.data(), count, y.data());
      c.op->apply(in_place.data(), count);
      EXPECT_EQ(y, in_place) << c.name << " x " << stretches;
      EXPECT_EQ(x, before) << c.name;
    }
  }
}

TEST(Operator, IsTheMatrixItStandsFor) {
  for (const Case& c : cases()) {
    const Matrix<double> m = matrix_of(*c.op);
    const auto inverted = inverse(m.view());
    ASSERT_TRUE(inverted.has_value()) << c.name;
    const Matrix<double> x = random_matrix(3, c.op->size(), 5);
    const int64_t count = x.rows() * x.cols();
    const std::pair<const char*, Matrix<double>> maps[] = {
        {"apply", times_transposed(x, m)},
        {"inverse", times_transposed(x, *inverted)},
        {"inverse transpose", times_transposed(x, transposed(*inverted))}};
    for (const auto& [what, expected] : maps) {
      Matrix<double> y = x;
      std::vector<float> f(x.data(), x.data() + count);
      if (std::string_view(what) == "apply") {
        c.op->apply(y.data(), count);
        c.op->apply(f.data(), count);
      } else if (std::string_view(what) == "inverse") {
        c.op->apply_inverse(y.data(), count);
        c.op->apply_inverse(f.data(), count);
      } else {
        c.op->apply_inverse_transpose(y.data(), count);
        c.op->apply_inverse_transpose(f.data(), count);
      }
      EXPECT_LT(worst(y.data(), expected.data(), count), kTolerance) << c.name << " " << what;
      EXPECT_LT(worst(f.data(), expected.data(), count), 1e-5) << c.name << " " << what;
    }
  }
}

TEST(Operator, ApplyingAndTakingBackGivesTheSame) {
  for (const Case& c : cases()) {
    const Matrix<double> x = random_matrix(2, c.op->size(), 6);
    Matrix<double> y = x;
    c.op->apply(y.data(), 2 * c.op->size());
    c.op->apply_inverse(y.data(), 2 * c.op->size());
    EXPECT_LT(worst(y.data(), x.data(), 2 * c.op->size()), kTolerance) << c.name;
  }
}

TEST(Operator, SaysWhetherItIsOrthogonal) {
  for (const Case& c : cases()) {
    const Matrix<double> m = matrix_of(*c.op);
    const Matrix<double> gram = times_transposed(m, m);
    double error = 0;
    for (int64_t i = 0; i < gram.rows(); ++i) {
      for (int64_t j = 0; j < gram.cols(); ++j) {
        error = std::max(error, std::abs(gram(i, j) - (i == j)));
      }
    }
    EXPECT_EQ(c.op->is_orthogonal(), error < 1e-5) << c.name << " " << error;
  }
}

TEST(Operator, DctIsTheCosineTransform) {
  for (const int64_t n : {1, 2, 7, 12, 45}) {
    const Matrix<double> m = matrix_of(*make_dct(n));
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t j = 0; j < n; ++j) {
        const double expected =
            std::sqrt((k == 0 ? 1.0 : 2.0) / double(n)) *
            std::cos(std::numbers::pi * (double(j) + 0.5) * double(k) / double(n));
        EXPECT_NEAR(m(k, j), expected, kTolerance) << n;
      }
    }
  }
}

// A random matrix of signs and columns would have the first column always positive.
TEST(Operator, RandomOrthogonalMatricesHaveNoPreferredSide) {
  int positive = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    positive += random_orthogonal(3, random)(0, 0) > 0;
  }
  EXPECT_GT(positive, 60);
  EXPECT_LT(positive, 140);
}

// The tensors of an operator as a file would hold them.
class Stored {
 public:
  explicit Stored(const Operator& op) : tensors_(op.tensors()) {
    for (const OperatorTensor& t : tensors_) {
      infos_.push_back({t.name, t.dtype, t.shape, t.bytes.data(), t.bytes.size(), 0});
    }
  }
  FindTensor find() const {
    return [this](std::string_view name) -> const TensorInfo* {
      for (const TensorInfo& info : infos_) {
        if (info.name == name) return &info;
      }
      return nullptr;
    };
  }
  std::vector<OperatorTensor>& edit() { return tensors_; }
  std::vector<TensorInfo>& infos() { return infos_; }

 private:
  std::vector<OperatorTensor> tensors_;
  std::vector<TensorInfo> infos_;
};

TEST(Operator, IsReadAsItWasWritten) {
  for (const Case& c : cases()) {
    const Stored stored(*c.op);
    const auto read = read_operator(c.op->to_json(), stored.find());
    ASSERT_TRUE(read.has_value()) << c.name << ": " << read.error().message;
    EXPECT_EQ((*read)->to_json(), c.op->to_json()) << c.name;
    EXPECT_EQ((*read)->kind(), c.op->kind()) << c.name;
    EXPECT_TRUE(matrix_of(**read) == matrix_of(*c.op)) << c.name;
  }
}

TEST(Operator, IsWrittenInTheShortestTypeThatHoldsIt) {
  const auto dtype = [](const Result<OperatorPtr>& op) { return (*op)->tensors()[0].dtype; };
  Matrix<double> m = invertible(8, 1);
  EXPECT_EQ(dtype(make_dense(std::as_const(m).view())), DType::kF32);
  EXPECT_EQ(dtype(make_random_orthogonal(8, 1, 2)), DType::kF64);
  for (int64_t i = 0; i < 64; ++i) m.data()[i] = in_half(m.data()[i]);
  EXPECT_EQ(dtype(make_dense(std::as_const(m).view())), DType::kF16);
  m(0, 0) = 65536;  // past the halves
  EXPECT_EQ(dtype(make_dense(std::as_const(m).view())), DType::kF32);
}

TEST(Operator, RefusesDataThatDoesNotFit) {
  for (const Case& c : cases()) {
    if (c.op->tensors().empty() || c.op->size() < 3) continue;
    const Json json = c.op->to_json();
    EXPECT_FALSE(read_operator(json, nullptr)) << c.name << " without tensors";
    Stored wide(*c.op);
    wide.infos()[0].shape.back() += 1;
    EXPECT_FALSE(read_operator(json, wide.find())) << c.name << " with a wrong shape";
    Stored typed(*c.op);
    typed.infos()[0].dtype = DType::kU32;
    EXPECT_FALSE(read_operator(json, typed.find())) << c.name << " with a wrong type";
    Stored damaged(*c.op);  // NaN in floats, -1 as an index
    std::fill_n(damaged.edit()[0].bytes.data(), 8, std::byte{0xff});
    EXPECT_FALSE(read_operator(json, damaged.find())) << c.name << " with damaged values";
    Json larger = json;
    larger["size"] = 2 * c.op->size();
    EXPECT_FALSE(read_operator(larger, Stored(*c.op).find())) << c.name << " of another size";
  }
}

TEST(Operator, RefusesWhatHasNoInverse) {
  EXPECT_FALSE(make_diagonal({1, 0, 2}));
  EXPECT_FALSE(make_diagonal({1, INFINITY}));
  EXPECT_FALSE(make_diagonal({1, 1e-40f}));
  EXPECT_FALSE(make_permutation({0, 0}));
  EXPECT_FALSE(make_permutation({0, 2}));
  EXPECT_FALSE(make_permutation({-1, 0}));
  const Matrix<double> singular(4, 4);
  EXPECT_FALSE(make_dense(singular.view()));
}

}  // namespace
}  // namespace quern
