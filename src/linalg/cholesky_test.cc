// SPDX-License-Identifier: Apache-2.0
#include "linalg/cholesky.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/parallel.h"
#include "base/random.h"

namespace quern {
namespace {

constexpr int64_t kSizes[] = {1, 3, 16, 17, 64, 65, 143, 144, 145, 200, 513};

// X^T X / rows + damping, exactly symmetric.
Matrix<double> gram(int64_t rows, int64_t n, double damping, uint64_t seed) {
  Random random(seed);
  Matrix<double> x(rows, n), h(n, n);
  for (int64_t i = 0; i < rows * n; ++i) x.data()[i] = random.gaussian();
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) h(i, j) += x(t, i) * x(t, j) / static_cast<double>(rows);
    }
  }
  for (int64_t i = 0; i < n; ++i) h(i, i) += damping;
  return h;
}

TEST(Cholesky, FactorsMultiplyBackToTheMatrix) {
  for (int64_t n : kSizes) {
    const Matrix<double> h = gram(n + 7, n, 0.01, static_cast<uint64_t>(n));
    Matrix<double> f = h;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) f(i, j) = 1e300;  // only the upper triangle is read
    }
    ASSERT_TRUE(reverse_cholesky(f.view()));
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_GT(f(i, i), 0);
      for (int64_t j = 0; j < i; ++j) ASSERT_EQ(f(i, j), 0);
      for (int64_t j = i; j < n; ++j) {
        double sum = f(j, j) * (i == j ? 1 : f(i, j));
        double size = std::fabs(sum);
        for (int64_t c = j + 1; c < n; ++c) {
          sum += f(i, c) * f(c, c) * f(j, c);
          size += std::fabs(f(i, c) * f(c, c) * f(j, c));
        }
        // Backward error of Cholesky (Higham, theorem 10.3): (n + 1) eps |U| |U^T|; a few more
        // roundings turn U into M and D.
        ASSERT_NEAR(sum, h(i, j), static_cast<double>(n + 8) * 0x1p-52 * size) << n;
      }
    }
  }
}

TEST(Cholesky, DividingByTheFactorUndoesTheProduct) {
  for (int64_t n : kSizes) {
    const Matrix<double> h = gram(n + 7, n, 0.1, static_cast<uint64_t>(n));
    Matrix<double> factor = h, x(5, n), y(5, n);
    ASSERT_TRUE(reverse_cholesky(factor.view()));
    Random random(static_cast<uint64_t>(n) + 1);
    for (int64_t i = 0; i < 5 * n; ++i) x.data()[i] = random.gaussian();
    for (int64_t i = 0; i < 5; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t k = 0; k < n; ++k) y(i, j) += x(i, k) * h(k, j);
      }
    }
    divide_by_factored(y.view(), factor.view());
    // The condition number is at most trace / 0.1; errors of both sweeps grow with it.
    double trace = 0;
    for (int64_t i = 0; i < n; ++i) trace += h(i, i);
    const double bound = static_cast<double>(n + 8) * 0x1p-52 * trace / 0.1 * 8;
    for (int64_t i = 0; i < 5 * n; ++i) ASSERT_NEAR(y.data()[i], x.data()[i], bound) << n;
  }
}

TEST(Cholesky, ADiagonalMatrixIsItsOwnPivots) {
  Matrix<double> h(150, 150);
  for (int64_t i = 0; i < 150; ++i) h(i, i) = static_cast<double>(i + 1);
  const Matrix<double> before = h;
  ASSERT_TRUE(reverse_cholesky(h.view()));
  EXPECT_EQ(h, before);
}

TEST(Cholesky, NamesThePivotThatFails) {
  for (int64_t bad : {0, 5, 135, 136, 143, 144, 287, 288, 299}) {
    Matrix<double> h(300, 300);
    for (int64_t i = 0; i < 300; ++i) h(i, i) = i == bad ? -1 : 2;
    const Status status = reverse_cholesky(h.view());
    ASSERT_FALSE(status);
    EXPECT_NE(status.error().message.find(fmt::format("pivot {} of 300", bad)), std::string::npos)
        << status.error().message;
  }
  Matrix<double> singular = gram(40, 64, 0, 3);  // rank 40
  EXPECT_FALSE(reverse_cholesky(singular.view()));
  Matrix<double> nan(2, 2);
  nan(0, 0) = 1;
  nan(1, 1) = std::nan("");
  EXPECT_FALSE(reverse_cholesky(nan.view()));
  Matrix<double> empty;
  EXPECT_TRUE(reverse_cholesky(empty.view()));
}

TEST(Cholesky, WorksInsideALargerMatrix) {
  const Matrix<double> h = gram(250, 200, 0.01, 4);
  Matrix<double> wide(200, 210), alone = h;
  for (int64_t i = 0; i < 200; ++i) {
    for (int64_t j = 0; j < 210; ++j) wide(i, j) = j < 200 ? h(i, j) : 7;
  }
  ASSERT_TRUE(reverse_cholesky(wide.view().col_range(0, 200)));
  ASSERT_TRUE(reverse_cholesky(alone.view()));
  for (int64_t i = 0; i < 200; ++i) {
    for (int64_t j = 0; j < 210; ++j) EXPECT_EQ(wide(i, j), j < 200 ? alone(i, j) : 7);
  }
}

TEST(Cholesky, FactorsAgreeAtEveryIsaAndThreadCount) {
  for (int64_t n : kSizes) {
    const Matrix<double> h = gram(n + 7, n, 0.01, static_cast<uint64_t>(n));
    Matrix<double> want = h;
    ASSERT_TRUE(reverse_cholesky(want.view(), kernels(Isa::kRef)));
    for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      if (!host_has(isa)) continue;
      for (int threads : {1, 2, 5}) {
        set_thread_count(threads);
        Matrix<double> got = h;
        ASSERT_TRUE(reverse_cholesky(got.view(), kernels(isa)));
        ASSERT_EQ(got, want) << n << " " << isa_name(isa) << " " << threads;
      }
    }
  }
  set_thread_count(0);
}

Matrix<float> activations(int64_t n_tokens, int64_t n, uint64_t seed) {
  Random random(seed);
  Matrix<float> x(n_tokens, n);
  for (int64_t i = 0; i < n_tokens * n; ++i) x.data()[i] = static_cast<float>(random.gaussian());
  return x;
}

// A race shows once in thousands of runs.
TEST(SlowCholesky, EveryRunOfManyThreadsGivesTheSameFactor) {
  const Matrix<float> x = activations(700, 640, 8);
  Matrix<double> h(640, 640);
  accumulate_gram(x.view(), h.view());
  Matrix<double> first = h;
  ASSERT_TRUE(reverse_cholesky(first.view()));
  set_thread_count(4);
  for (int i = 0; i < 400; ++i) {
    Matrix<double> again = h;
    ASSERT_TRUE(reverse_cholesky(again.view()));
    ASSERT_EQ(again, first) << "run " << i;
  }
  set_thread_count(0);
}

TEST(Gram, AddsTheProductsOfColumnsToTheUpperTriangle) {
  for (int64_t n : kSizes) {
    for (int64_t n_tokens : {1, 33, 512, 1100}) {
      const Matrix<float> x = activations(n_tokens, n, 5);
      Matrix<double> h(n, n);
      for (int64_t i = 0; i < n * n; ++i) h.data()[i] = 3;
      accumulate_gram(x.view(), h.view());
      for (int64_t i = 0; i < n; i += 1 + n / 40) {
        for (int64_t j = 0; j < n; ++j) {
          if (j < i) {
            ASSERT_EQ(h(i, j), 3);
            continue;
          }
          double sum = 3, size = 3;
          for (int64_t t = 0; t < n_tokens; ++t) {
            const double term = static_cast<double>(x(t, i)) * x(t, j);
            sum += term;
            size += std::fabs(term);
          }
          ASSERT_NEAR(h(i, j), sum, 40 * 0x1p-24 * size);
        }
      }
    }
  }
}

TEST(Gram, MirroringMakesItSymmetric) {
  const Matrix<float> x = activations(20, 100, 6);
  Matrix<double> h(100, 100);
  accumulate_gram(x.view(), h.view());
  const Matrix<double> upper = h;
  mirror_upper(h.view());
  for (int64_t i = 0; i < 100; ++i) {
    for (int64_t j = i; j < 100; ++j) {
      EXPECT_EQ(h(i, j), upper(i, j));
      EXPECT_EQ(h(j, i), upper(i, j));
    }
  }
}

TEST(Gram, NeitherStepDependsOnTheNumberOfThreads) {
  const Matrix<float> x = activations(700, 450, 7);
  std::vector<Matrix<double>> grams, factors;
  for (int threads : {1, 2, 5}) {
    set_thread_count(threads);
    Matrix<double> h(450, 450);
    accumulate_gram(x.view(), h.view());
    grams.push_back(h);
    ASSERT_TRUE(reverse_cholesky(h.view()));
    factors.push_back(h);
  }
  set_thread_count(0);
  for (int i : {1, 2}) {
    EXPECT_EQ(grams[i], grams[0]);
    EXPECT_EQ(factors[i], factors[0]);
  }
}

}  // namespace
}  // namespace quern
