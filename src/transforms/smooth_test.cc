// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "transforms/layer_view_testing.h"

namespace quern {
namespace {

using testing::FakeLayer;
using testing::fitted;
using testing::scales_at;

constexpr Site kAll[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};
const char* const kEverywhere = "attn_in+heads+mlp_in+ffn";

std::vector<float> largest_weights(const FakeLayer& layer, Site site) {
  std::vector<float> largest(layer.statistics(site)->abs_max.size());
  for (const Reader& reader : readers(layer.desc(), site)) {
    const Matrix<float> w = *layer.weight(reader.role, reader.expert);
    for (int64_t i = 0; i < w.rows(); ++i) {
      for (int64_t j = 0; j < w.cols(); ++j) {
        float& most = largest[static_cast<size_t>(j)];
        most = std::max(most, std::abs(w(i, j)));
      }
    }
  }
  return largest;
}

// Two roundings: of the factor and of the product.
constexpr float kUlps = 3 * 0x1p-24f;

TEST(Smooth, AtOneEveryChannelHasACalibratedMaximumOfOne) {
  for (const bool with_experts : {false, true}) {
    const FakeLayer layer(with_experts ? 3 : 0, 4);
    const BasisChange basis = fitted(layer, fmt::format("smooth(alpha=1, sites={})", kEverywhere));
    for (const Site site : kAll) {
      const std::vector<float> scale = scales_at(basis, site);
      const auto& most = layer.statistics(site)->abs_max;
      ASSERT_EQ(scale.size(), most.size());
      for (size_t j = 0; j < scale.size(); ++j) EXPECT_NEAR(scale[j] * most[j], 1, kUlps);
    }
  }
}

TEST(Smooth, AtZeroEveryColumnHasALargestWeightOfOne) {
  const FakeLayer layer(3, 4);
  const BasisChange basis = fitted(layer, fmt::format("smooth(alpha=0, sites={})", kEverywhere));
  for (const Site site : kAll) {
    const std::vector<float> scale = scales_at(basis, site), w = largest_weights(layer, site);
    for (size_t j = 0; j < scale.size(); ++j) EXPECT_NEAR(w[j] / scale[j], 1, kUlps);
  }
}

// At a half, both sides of a channel are equal: sqrt(max|X_j| max|W_j|).
TEST(Smooth, AtAHalfInputsAndWeightsOfAChannelAreEqual) {
  const FakeLayer layer(0, 4);
  const BasisChange basis = fitted(layer, fmt::format("smooth(sites={})", kEverywhere));
  for (const Site site : kAll) {
    const std::vector<float> scale = scales_at(basis, site), w = largest_weights(layer, site);
    const auto& x = layer.statistics(site)->abs_max;
    for (size_t j = 0; j < scale.size(); ++j) {
      EXPECT_NEAR(x[j] * scale[j] / (w[j] / scale[j]), 1, 4 * kUlps);
    }
  }
}

// Static CrossQuant: x / c^(1 - a).
TEST(Smooth, WithoutWeightsItIsAPowerOfTheColumns) {
  const FakeLayer layer(0, 4);
  const BasisChange basis = fitted(layer, "smooth(alpha=0.85, weights=none)");
  for (const Site site : {Site::kAttnIn, Site::kMlpIn}) {
    const std::vector<float> scale = scales_at(basis, site);
    const auto& c = layer.statistics(site)->abs_max;
    for (size_t j = 0; j < scale.size(); ++j) {
      EXPECT_NEAR(scale[j] * std::pow(double{c[j]}, 0.85), 1, 1e-6);
    }
  }
  EXPECT_TRUE(basis.empty(Site::kHeads));
  EXPECT_TRUE(basis.empty(Site::kFfn));
  const BasisChange none = fitted(layer, "smooth(alpha=0, weights=none)");
  for (const float s : scales_at(none, Site::kAttnIn)) EXPECT_EQ(s, 1);
}

// |x_ij| <= min(t_i, c_j) <= t_i^a c_j^(1-a): the scale of a token behind the column powers is
// never above CrossQuant's t_i^a, and no value of calibration is clamped.
TEST(Smooth, ATokenScaleBehindColumnPowersIsNoLargerThanCrossQuants) {
  const FakeLayer layer(0, 4);
  constexpr double kA = 0.15;
  const BasisChange basis = fitted(layer, "smooth(alpha=0.85, weights=none)");
  const std::vector<float> scale = scales_at(basis, Site::kAttnIn);
  const Matrix<float>& rows = layer.statistics(Site::kAttnIn)->rows;
  for (int64_t i = 0; i < rows.rows(); ++i) {
    double before = 0, behind = 0;
    for (int64_t j = 0; j < rows.cols(); ++j) {
      before = std::max(before, std::abs(double{rows(i, j)}));
      behind = std::max(behind, std::abs(double{rows(i, j)} * scale[static_cast<size_t>(j)]));
    }
    EXPECT_LE(behind, std::pow(before, kA) * (1 + 1e-6));
  }
}

TEST(Smooth, HeadsThatShareAKvHeadShareFactors) {
  const FakeLayer layer(0, 2);  // two query heads to a KV head
  const auto& a = layer.desc().attention;
  const BasisChange basis = fitted(layer, "smooth(alpha=1, sites=heads)");
  const std::vector<float> scale = scales_at(basis, Site::kHeads);
  const auto& most = layer.statistics(Site::kHeads)->abs_max;
  const auto d = static_cast<size_t>(a.d_head);
  for (size_t head = 0; head < static_cast<size_t>(a.n_heads); head += 2) {
    for (size_t j = 0; j < d; ++j) {
      const size_t left = head * d + j, right = left + d;
      EXPECT_EQ(scale[left], scale[right]);
      EXPECT_NEAR(scale[left] * std::max(most[left], most[right]), 1, kUlps);
    }
  }
}

TEST(Smooth, ADeadChannelStaysAsItIs) {
  FakeLayer layer(0, 4);
  layer.edit_statistics(Site::kMlpIn).abs_max[3] = 0;
  for (const Role role : {Role::kGate, Role::kUp}) {
    for (int64_t i = 0; i < layer.desc().mlp.d_ffn; ++i) layer.edit_weight(role)(i, 5) = 0;
  }
  const std::vector<float> scale = scales_at(fitted(layer, "smooth"), Site::kMlpIn);
  EXPECT_EQ(scale[3], 1);
  EXPECT_EQ(scale[5], 1);
}

TEST(Smooth, ASiteThatNoTokenReachedStaysAsItIs) {
  FakeLayer layer(3, 4);
  layer.drop_statistics(Site::kFfn);
  const BasisChange basis = fitted(layer, fmt::format("smooth(sites={})", kEverywhere));
  EXPECT_TRUE(basis.at(Site::kFfn, 0).empty());
  EXPECT_FALSE(basis.at(Site::kMlpIn, 0).empty());
}

}  // namespace
}  // namespace quern
