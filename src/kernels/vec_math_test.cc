// SPDX-License-Identifier: Apache-2.0
// The functions against double precision. Through the table's slots, at the reference ISA; the
// others give the same bits (kernels_test.cc).
#include "kernels/vec_math.h"

#include <numbers>

#include "kernels/parity_testing.h"

namespace quern {
namespace {

// Distance in units of the last place of the exact value's float.
double ulps(double got, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::fabs(got - exact) / std::ldexp(1.0, std::max(exponent, -125) - 24);
}

// No slot is exp alone, so the templates run on one lane made of other operations than the
// reference's.
struct Lane {
  float v;
  static Lane set(float a) { return {a}; }
  static Lane add(Lane a, Lane b) { return {a.v + b.v}; }
  static Lane sub(Lane a, Lane b) { return {a.v - b.v}; }
  static Lane mul(Lane a, Lane b) { return {a.v * b.v}; }
  static Lane fma(Lane a, Lane b, Lane c) { return {std::fma(a.v, b.v, c.v)}; }
  static Lane min(Lane a, Lane b) { return a.v < b.v ? a : b; }
  static Lane max(Lane a, Lane b) { return a.v > b.v ? a : b; }
  static Lane times_power(Lane a, Lane shifted) {
    return {std::ldexp(a.v, static_cast<int>(shifted.v - vec_math::kMagic))};
  }
};

float exp_of(float x) { return vec_math::exp(Lane{x}).v; }
float exp2_of(float x) { return vec_math::exp2(Lane{x}).v; }

template <class Exact>
double worst_ulps(float (*of)(float), const Exact& exact, double low, double high) {
  double worst = 0;
  for (double x = low; x <= high; x += 0.00217) {
    const auto single = static_cast<float>(x);
    worst = std::max(worst, ulps(of(single), exact(static_cast<double>(single))));
  }
  return worst;
}

TEST(VecMath, ExpIsWithinOneAndAHalfUlps) {
  EXPECT_LE(worst_ulps(
                exp_of, [](double x) { return std::exp(x); }, -87, 88),
            1.5);
}

TEST(VecMath, ExpEndsInZeroAndInfinity) {
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-1e30f), 0.0f);
  EXPECT_EQ(exp_of(-104.5f), 0.0f);
  EXPECT_GT(exp_of(-100.0f), 0.0f) << "subnormal, not flushed";
  EXPECT_EQ(exp_of(89.0f), std::numeric_limits<float>::infinity());
  EXPECT_EQ(exp_of(1e30f), std::numeric_limits<float>::infinity());
  const double large = std::exp(static_cast<double>(88.7f));
  EXPECT_NEAR(exp_of(88.7f), large, 1e-6 * large);
}

TEST(VecMath, Exp2IsWithinThreeUlps) {
  EXPECT_LE(worst_ulps(
                exp2_of, [](double x) { return std::exp2(x); }, -125, 127),
            3);
}

TEST(VecMath, Exp2IsExactAtWholeNumbersAndEndsInZero) {
  for (int n = -149; n <= 127; ++n) {
    EXPECT_EQ(exp2_of(static_cast<float>(n)), std::ldexp(1.0f, n)) << n;
  }
  EXPECT_EQ(exp2_of(-151.0f), 0.0f);
  EXPECT_EQ(exp2_of(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isnan(exp2_of(std::nanf(""))));
}

TEST(VecMath, TanhIsWithinThreeUlps) {
  double worst = 0;
  for (double x = -12; x <= 12; x += 0.00037) {
    auto y = static_cast<float>(x);
    const double exact = std::tanh(static_cast<double>(y));
    kernels(Isa::kRef).soft_cap(1, 1, &y);
    worst = std::max(worst, ulps(y, exact));
  }
  for (double x = 1e-30; x < 0.5; x *= 1.01) {
    auto y = static_cast<float>(x);
    const double exact = std::tanh(static_cast<double>(y));
    kernels(Isa::kRef).soft_cap(1, 1, &y);
    worst = std::max(worst, ulps(y, exact));
  }
  EXPECT_LE(worst, 3);
}

double gelu_exact(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }

double gelu_tanh_exact(double x) {
  const double inner = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1 + std::tanh(inner));
}

double silu_exact(double x) { return x / (1 + std::exp(-x)); }

TEST(VecMath, ActivationsAreWithinAMillionth) {
  struct Row {
    Activation activation;
    double (*exact)(double);
  };
  const Row rows[] = {{Activation::kSilu, silu_exact},
                      {Activation::kGelu, gelu_exact},
                      {Activation::kGeluTanh, gelu_tanh_exact}};
  for (const Row& row : rows) {
    double worst = 0;
    for (double x = -20; x <= 20; x += 0.00071) {
      auto y = static_cast<float>(x);
      const double exact = row.exact(static_cast<double>(y));
      kernels(Isa::kRef).activate(row.activation, 1, &y);
      worst = std::max(worst, std::fabs(y - exact) / std::max(1.0, std::fabs(exact)));
    }
    EXPECT_LT(worst, 1e-6) << static_cast<int>(row.activation);
  }
}

TEST(VecMath, LogIsRoundedCorrectlyAlmostAlways) {
  for (float x = 1e-37f; x < 1e38f; x *= 1.0037f) {
    EXPECT_EQ(log_of(x), static_cast<float>(std::log(static_cast<double>(x)))) << x;
  }
  EXPECT_EQ(log_of(1.0f), 0.0f);
}

TEST(VecMath, SoftmaxSumsToOneAndSurvivesMinusInfinity) {
  std::vector<float> x(1000);
  testing::fill(x.data(), 1000, testing::Fill::kGaussian, 3);
  double sum_exp = 0;
  for (float v : x) sum_exp += std::exp(static_cast<double>(v));
  float lse = 0;
  kernels().softmax(1, 1000, x.data(), &lse);
  EXPECT_NEAR(lse, std::log(sum_exp), 1e-6 * std::log(sum_exp));
  double sum = 0;
  for (float v : x) sum += v;
  // 1000 terms, each within a few rounding errors of its size.
  EXPECT_NEAR(sum, 1.0, 8 * 0x1p-24);
  const float minus = -std::numeric_limits<float>::infinity();
  std::vector<float> none(5, minus);
  kernels().softmax(1, 5, none.data(), &lse);
  EXPECT_EQ(lse, minus);
  for (float v : none) EXPECT_EQ(v, 0.0f);
  lse = 0;
  kernels().softmax(1, 0, nullptr, &lse);
  EXPECT_EQ(lse, minus);
}

}  // namespace
}  // namespace quern
