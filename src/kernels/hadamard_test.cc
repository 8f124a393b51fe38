// SPDX-License-Identifier: Apache-2.0
#include "kernels/hadamard.h"

#include "base/parallel.h"
#include "kernels/hadamard_matrices.h"
#include "kernels/parity_testing.h"

namespace quern {
namespace {

HadamardPlan plan_of(int64_t n) {
  auto plan = HadamardPlan::make(n);
  QUERN_CHECK(plan.has_value());
  return *std::move(plan);
}

template <class T>
Matrix<T> gaussian(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<T> x(rows, cols);
  Random random(seed);
  for (int64_t i = 0; i < rows * cols; ++i) x.data()[i] = static_cast<T>(random.gaussian());
  return x;
}

void expect_near(const Matrix<double>& got, const Matrix<double>& want, double tolerance) {
  for (int64_t i = 0; i < want.rows(); ++i) {
    for (int64_t j = 0; j < want.cols(); ++j) {
      ASSERT_NEAR(got(i, j), want(i, j), tolerance) << i << ", " << j;
    }
  }
}

Matrix<double> identity(int64_t n) {
  Matrix<double> e(n, n);
  for (int64_t i = 0; i < n; ++i) e(i, i) = 1;
  return e;
}

Matrix<double> transposed(const Matrix<double>& a) {
  Matrix<double> t(a.cols(), a.rows());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j) t(j, i) = a(i, j);
  }
  return t;
}

Matrix<double> kronecker(const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> c(a.rows() * b.rows(), a.cols() * b.cols());
  for (int64_t i = 0; i < c.rows(); ++i) {
    for (int64_t j = 0; j < c.cols(); ++j) {
      c(i, j) = a(i / b.rows(), j / b.cols()) * b(i % b.rows(), j % b.cols());
    }
  }
  return c;
}

void expect_hadamard(const std::vector<int8_t>& h, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      int64_t dot = 0;
      for (int64_t c = 0; c < k; ++c) {
        ASSERT_EQ(std::abs(h[i * k + c]), 1);
        dot += h[i * k + c] * h[j * k + c];
      }
      ASSERT_EQ(dot, i == j ? k : 0) << "order " << k << " rows " << i << ", " << j;
    }
  }
}

TEST(Hadamard, EveryConstructionIsAHadamardMatrix) {
  int64_t count = 0;
  for (std::string_view construction : {"paley1", "paley2", "williamson", "double-paley1",
                                        "double-paley2", "double-double-williamson"}) {
    for (int64_t k = 1; k <= 256; ++k) {
      const auto h = hadamard_matrix(k, construction);
      if (!h) continue;
      ++count;
      expect_hadamard(*h, k);
    }
  }
  EXPECT_GT(count, 60);
  expect_hadamard(*hadamard_matrix(924, "paley2"), 924);
}

TEST(Hadamard, EveryMultipleOfFourUpTo184HasAPlan) {
  for (int64_t n = 4; n <= 184; n += 4) EXPECT_TRUE(HadamardPlan::make(n)) << n;
  for (int64_t n : {188, 236, 7, 13696, 6, 9, 14, 15, 25, 0, -4}) {
    const auto plan = HadamardPlan::make(n);
    ASSERT_FALSE(plan) << n;
    EXPECT_NE(plan.error().message.find(std::to_string(n)), std::string::npos);
  }
}

struct Size {
  int64_t k;
  std::vector<int64_t> sizes;
};

// The sizes of real models and the order each resolves to.
const Size kRealSizes[] = {
    {36, {288, 576, 1152, 2304, 9216}},
    {12, {768, 1536, 3072, 6144, 12288, 24576}},
    {28, {896, 3584, 14336, 28672}},
    {44, {5632, 2816}},
    {20, {2560, 5120, 10240}},
    {76, {4864, 9728}},
    {52, {6656, 53248}},
    {140, {8960, 17920}},
    {172, {11008, 22016, 1376}},
    {108, {6912, 13824, 27648}},
    {148, {18944}},
    {68, {17408}},
    {60, {15360}},
    {84, {21504}},
    {100, {25600}},
    {924, {29568}},
    {1, {1, 2, 64, 128, 4096}},
};

TEST(Hadamard, RealSizesResolveToTheirOrderAndRotateBothWays) {
  for (const Size& row : kRealSizes) {
    for (int64_t n : row.sizes) {
      const HadamardPlan plan = plan_of(n);
      ASSERT_EQ(plan.k(), row.k) << n;
      ASSERT_EQ(plan.signs().size(), static_cast<size_t>(row.k * row.k));
      const Matrix<double> x = gaussian<double>(1, n, static_cast<uint64_t>(n));
      Matrix<double> y = x;
      plan.apply_rows(y.view());
      double before = 0, after = 0;
      for (int64_t i = 0; i < n; ++i) {
        before += x(0, i) * x(0, i);
        after += y(0, i) * y(0, i);
      }
      ASSERT_NEAR(after, before, 1e-12 * before) << n;
      plan.apply_rows_transposed(y.view());
      expect_near(y, x, 1e-12);
    }
  }
}

TEST(Hadamard, ReadingAFilesPlanGivesTheSameOperatorOrAReason) {
  const HadamardPlan plan = plan_of(11008);
  const auto read = HadamardPlan::make_as(11008, plan.k(), plan.construction());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->signs(), plan.signs());
  const auto other = HadamardPlan::make_as(2560, 40, "double-paley1");
  ASSERT_TRUE(other);
  EXPECT_EQ(other->k(), 40);
  EXPECT_FALSE(HadamardPlan::make_as(2560, 20, "paley2"));
  EXPECT_FALSE(HadamardPlan::make_as(2560, 20, "unheard-of"));
  EXPECT_FALSE(HadamardPlan::make_as(2560, 12, "paley1"));
  EXPECT_FALSE(HadamardPlan::make_as(2560, -20, "paley1"));
}

class DenseHadamard : public ::testing::TestWithParam<int64_t> {};

TEST_P(DenseHadamard, IsOrthogonalAndSpreadsPerfectly) {
  const int64_t n = GetParam();
  const HadamardPlan plan = plan_of(n);
  const Matrix<double> m = plan.to_dense();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      ASSERT_EQ(std::fabs(m(i, j)), 1 / std::sqrt(static_cast<double>(n)));
    }
  }
  Matrix<double> rows = identity(n);
  plan.apply_rows(rows.view());
  expect_near(rows, transposed(m), 1e-15);
  plan.apply_rows_transposed(rows.view());
  expect_near(rows, identity(n), 1e-12);
  Matrix<double> columns = identity(n);
  plan.apply_columns(columns.view());
  expect_near(columns, m, 1e-15);
  plan.apply_columns_transposed(columns.view());
  expect_near(columns, identity(n), 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Sizes, DenseHadamard,
                         ::testing::Values(1, 2, 8, 12, 24, 20, 28, 36, 44, 52, 60, 68, 76, 84, 92,
                                           100, 108, 116, 140, 148, 156, 160, 172, 288, 512));

TEST(Hadamard, ThePowerOfTwoTransformIsAnInvolution) {
  const Matrix<double> x = gaussian<double>(3, 256, 1);
  Matrix<double> y = x;
  for (int i = 0; i < 2; ++i) plan_of(256).apply_rows(y.view());
  expect_near(y, x, 1e-13);
}

TEST(Hadamard, FloatsHaveTheSameBitsAtEveryIsaAndAnyThreadCount) {
  for (int64_t n : {1, 2, 12, 64, 24, 1376, 2560, 11008}) {
    const HadamardPlan plan = plan_of(n);
    const Matrix<float> x = gaussian<float>(9, n, 2);
    Matrix<float> want = x;
    plan.apply_rows(want.view(), kernels(Isa::kRef));
    std::vector<float> signs(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) signs[static_cast<size_t>(i)] = i % 3 == 0 ? -1.0f : 1.0f;
    Matrix<float> turned = x;
    for (int64_t i = 0; i < 9 * n; ++i) turned.data()[i] *= signs[static_cast<size_t>(i % n)];
    plan.apply_rows(turned.view(), kernels(Isa::kRef));
    for (Isa isa : testing::fast_isas()) {
      for (int threads : {1, 3}) {
        set_thread_count(threads);
        Matrix<float> got = x;
        plan.apply_rows(got.view(), kernels(isa));
        EXPECT_EQ(got, want) << n;
        got = x;
        plan.apply_signed_rows(got.view(), signs.data(), got.view(), kernels(isa));
        EXPECT_EQ(got, turned) << n;
        Matrix<float> elsewhere(9, n);
        plan.apply_rows(x.view(), elsewhere.view(), kernels(isa));
        EXPECT_EQ(elsewhere, want) << n;
      }
    }
    set_thread_count(0);
    // Each value is a sum of n / sqrt(n) rounded log2(n / k) + k times.
    Matrix<double> exact(9, n);
    std::copy_n(x.data(), 9 * n, exact.data());
    plan.apply_rows(exact.view());
    for (int64_t i = 0; i < 9 * n; ++i) {
      ASSERT_NEAR(want.data()[i], exact.data()[i],
                  (static_cast<double>(plan.k()) + 16) * 6 * 0x1p-24);
    }
    plan.apply_rows_transposed(want.view());
    for (int64_t i = 0; i < 9 * n; ++i) {
      ASSERT_NEAR(want.data()[i], x.data()[i], (static_cast<double>(plan.k()) + 16) * 12 * 0x1p-24);
    }
  }
}

TEST(Hadamard, HeadsOfFloatsHaveTheSameBitsAtEveryIsa) {
  const std::pair<int64_t, int64_t> shapes[] = {{8, 64}, {32, 80}, {12, 17}, {40, 128}, {1, 16}};
  for (const auto& [n_heads, d_head] : shapes) {
    const HadamardPlan plan = plan_of(n_heads);
    const Matrix<float> x = gaussian<float>(3, n_heads * d_head, 3);
    Matrix<float> want = x;
    plan.apply_heads(want.view(), d_head, kernels(Isa::kRef));
    for (Isa isa : testing::fast_isas()) {
      Matrix<float> got = x;
      plan.apply_heads(got.view(), d_head, kernels(isa));
      EXPECT_EQ(got, want) << n_heads << " x " << d_head;
      Matrix<float> elsewhere(3, x.cols());
      plan.apply_heads(x.view(), d_head, elsewhere.view(), kernels(isa));
      EXPECT_EQ(elsewhere, want) << n_heads << " x " << d_head;
    }
    Matrix<double> exact(3, x.cols());
    std::copy_n(x.data(), x.rows() * x.cols(), exact.data());
    plan.apply_heads(exact.view(), d_head);
    for (int64_t i = 0; i < 3 * x.cols(); ++i) {
      ASSERT_NEAR(want.data()[i], exact.data()[i],
                  (static_cast<double>(plan.k()) + 16) * 6 * 0x1p-24);
    }
    plan.apply_heads_transposed(want.view(), d_head);
    for (int64_t i = 0; i < 3 * x.cols(); ++i) {
      ASSERT_NEAR(want.data()[i], x.data()[i], (static_cast<double>(plan.k()) + 16) * 12 * 0x1p-24);
    }
  }
}

TEST(Hadamard, TheInputOfOProjIsHeadsTimesHead) {
  const std::pair<int64_t, int64_t> shapes[] = {{20, 16}, {12, 8}, {8, 12},
                                                {24, 4},  {56, 4}, {1, 8}};
  for (const auto& [n_heads, d_head] : shapes) {
    const auto plan = HeadsHadamard::make(n_heads, d_head);
    ASSERT_TRUE(plan);
    const int64_t n = n_heads * d_head;
    const Matrix<double> want =
        transposed(kronecker(plan->heads.to_dense(), plan->head.to_dense()));
    Matrix<double> rows = identity(n);
    plan->apply_rows(rows.view());
    expect_near(rows, want, 1e-14);
    plan->apply_rows_transposed(rows.view());
    expect_near(rows, identity(n), 1e-12);
    // Online part over fused part is the whole, whatever n_heads * d_head resolves to.
    Matrix<double> parts = identity(n);
    plan->head.apply_rows(MatrixView<double>(parts.data(), n * n_heads, d_head));
    plan->heads.apply_heads(parts.view(), d_head);
    expect_near(parts, want, 1e-14);
  }
  EXPECT_FALSE(HeadsHadamard::make(14, 64));
}

TEST(Hadamard, ViewsWithAStrideKeepWhatLiesBetweenRows) {
  const auto plan = HeadsHadamard::make(4, 12);
  ASSERT_TRUE(plan);
  Matrix<float> wide = gaussian<float>(5, 60, 4), packed(5, 48);
  for (int64_t r = 0; r < 5; ++r) std::copy_n(wide.row(r), 48, packed.row(r));
  const Matrix<float> before = wide;
  plan->apply_rows(wide.view().col_range(0, 48));
  plan->apply_rows(packed.view());
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 60; ++c) EXPECT_EQ(wide(r, c), c < 48 ? packed(r, c) : before(r, c));
  }
  Matrix<double> columns = gaussian<double>(12, 70, 5);
  const Matrix<double> all = columns;
  plan->head.apply_columns(columns.view().col_range(1, 65));
  Matrix<double> turned = transposed(all);
  plan->head.apply_rows(turned.view());
  for (int64_t r = 0; r < 12; ++r) {
    for (int64_t c = 0; c < 70; ++c) {
      EXPECT_EQ(columns(r, c), c >= 1 && c < 66 ? turned(c, r) : all(r, c));
    }
  }
}

TEST(Hadamard, TheGroupSizeIsThePowerOfTwoInTheSize) {
  EXPECT_EQ(grouped_hadamard_size(13696), 128);
  EXPECT_EQ(grouped_hadamard_size(7), 1);
  EXPECT_EQ(grouped_hadamard_size(4096), 4096);
}

}  // namespace
}  // namespace quern
