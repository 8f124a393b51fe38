// SPDX-License-Identifier: Apache-2.0
// Products of coded weights with rounded inputs are executed as the rounding says: integers to the
// bit of the scalar reference, floats as a product with the rounded rows.
#include <gtest/gtest.h>

#include <cstring>

#include "base/checked.h"
#include "gaussian.h"
#include "kernels/kernels.h"
#include "model/linear.h"
#include "model/synthetic.h"

namespace quern {
namespace {

constexpr int64_t kOut = 50, kIn = 200;

std::shared_ptr<const ActRounding> rounding(std::string_view text, MatrixView<const float> x) {
  std::vector<float> low(static_cast<size_t>(x.cols)), high = low;
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.cols; ++j) {
      low[static_cast<size_t>(j)] = std::min(low[static_cast<size_t>(j)], x(i, j));
      high[static_cast<size_t>(j)] = std::max(high[static_cast<size_t>(j)], x(i, j));
    }
  }
  std::shared_ptr<const ActQuantizer> act = *make_act(text);
  std::vector<float> ranges = act->ranges(low, high);
  return std::make_shared<ActRounding>(ActRounding{std::move(act), std::move(ranges)});
}

LinearWeight weight_with(const std::string& codec, std::shared_ptr<const ActRounding> rounding) {
  LinearWeight weight = *synthetic_linear(codec, kOut, kIn, 1, Activations::kInt8);
  weight.rounding = std::move(rounding);
  return weight;
}

// The definition of kernels/panels.h on whole panels, by the reference.
Matrix<float> expected_of(const LinearWeight& weight, MatrixView<const float> x) {
  const int64_t group = weight.codec->panel_tile(kIn).group, n_groups = ceil_div(kIn, group);
  const int64_t n_panels = ceil_div(kOut, kPanelRows);
  AlignedVector<uint8_t> levels(static_cast<size_t>(n_panels * n_groups * group * kPanelRows));
  AlignedVector<float> scales(static_cast<size_t>(n_panels * n_groups * kPanelRows));
  const int64_t strides[2] = {n_groups * group * kPanelRows, n_groups * kPanelRows};
  weight.codec->decode_panels(weight.codes, 0, kOut, 0, kIn,
                              {levels.data(), scales.data(), strides[0], strides[1]});
  Matrix<float> y(x.rows, kOut);
  for (int64_t i = 0; i < x.rows; ++i) {
    AlignedVector<int8_t> row(static_cast<size_t>(n_groups * group));
    std::vector<float> row_scales(static_cast<size_t>(n_groups));
    std::vector<int32_t> offsets(static_cast<size_t>(n_groups));
    weight.rounding->act->levels(x.row(i), kIn, weight.rounding->ranges,
                                 {group, row.data(), row_scales.data(), offsets.data()});
    kernels(Isa::kRef).panel_dot(
        {levels.data(), scales.data(), strides[0], strides[1], kOut, 0, n_groups},
        {row.data(), row_scales.data(), offsets.data(), 1, n_groups, group, n_groups * group},
        y.row(i), kOut);
  }
  return y;
}

TEST(LinearRounding, IntegersAreThoseOfTheReferenceToTheBit) {
  for (const char* codec : {"int(8, group=0)", "int(4, group=64)", "int(4, group=64, sym=false)",
                            "ternary(group=64)", "float(e4m3)"}) {
    for (const char* text : {"int(8)", "int(4, clip=0.9)", "int(3)", "int(4, sym=false)",
                             "int(6, per=group, group=128)", "int(8, per=tensor, scale=static)"}) {
      for (const int64_t n : {1, 5, 40}) {
        const Matrix<float> x = gaussian(n, kIn, 2);
        const LinearWeight weight = weight_with(codec, rounding(text, x.view()));
        ASSERT_TRUE(weight.is_int8());
        ASSERT_TRUE(check_rounding(weight));
        Matrix<float> y(n, kOut);
        linear(weight, x.view(), y.view());
        EXPECT_TRUE(y == expected_of(weight, x.view())) << codec << " " << text << " " << n;
      }
    }
  }
}

TEST(LinearRounding, FloatsAreAProductWithTheRoundedRows) {
  const Matrix<float> x = gaussian(7, kIn, 3);
  for (const char* text : {"fp8", "fp8(e5m2)", "fp8(per=tensor, scale=static)"}) {
    LinearWeight weight = weight_with("float(e4m3)", rounding(text, x.view()));
    ASSERT_FALSE(weight.is_int8());
    Matrix<float> rounded(7, kIn), y(7, kOut), expected(7, kOut);
    for (int64_t i = 0; i < 7; ++i) weight.rounding->values(x.row(i), kIn, rounded.row(i));
    EXPECT_FALSE(rounded == x);
    linear(weight, x.view(), y.view());
    weight.rounding = nullptr;
    weight.activations = Activations::kExact;
    linear(weight, rounded.view(), expected.view());
    EXPECT_TRUE(y == expected) << text;
  }
}

// Whatever is computed beside it, and whatever --activations says.
TEST(LinearRounding, AProductDoesNotDependOnItsCompany) {
  const Matrix<float> x = gaussian(9, kIn, 4);
  const auto four = rounding("int(4, clip=0.9)", x.view()), eight = rounding("int(8)", x.view());
  const auto same = rounding("int(4, clip=0.9)", x.view()), fp8 = rounding("fp8", x.view());
  std::vector<LinearWeight> weights;
  for (const auto& how : {four, eight, same, fp8, fp8, std::shared_ptr<const ActRounding>()}) {
    for (const char* codec : {"int(4, group=64)", "int(8, group=32)"}) {
      weights.push_back(weight_with(codec, how));
    }
  }
  std::vector<Matrix<float>> together, alone;
  for (size_t i = 0; i < weights.size(); ++i) {
    together.emplace_back(9, kOut);
    alone.emplace_back(9, kOut);
  }
  std::vector<Product> products;
  for (size_t i = 0; i < weights.size(); ++i) {
    products.push_back({&weights[i], together[i].view()});
  }
  linear(products, x.view());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].rounding != nullptr) weights[i].activations = Activations::kExact;
    for (int64_t row = 0; row < 9; ++row) {
      linear(weights[i], x.view().row_range(row, 1), alone[i].view().row_range(row, 1));
    }
    EXPECT_TRUE(together[i] == alone[i]) << i;
  }
}

TEST(LinearRounding, ADenseWeightHasNone) {
  LinearWeight weight = dense_weight(gaussian(3, 8, 5), {});
  const Matrix<float> x = gaussian(1, 8, 6);
  Matrix<float> y(1, 3), expected(1, 3);
  linear(weight, x.view(), expected.view());
  weight.rounding = rounding("int(3)", x.view());
  linear(weight, x.view(), y.view());
  EXPECT_TRUE(y == expected);
}

}  // namespace
}  // namespace quern
