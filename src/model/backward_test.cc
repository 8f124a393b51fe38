// SPDX-License-Identifier: Apache-2.0
// Parts of the adjoint by themselves; whole gradients are tested in calib/gradients_test.cc.
#include "model/backward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "gaussian.h"
#include "model/model_test_util.h"
#include "model/reference_ops.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;

TEST(Backward, SlopesAreThoseOfActivations) {
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                      Activation::kRelu, Activation::kRelu2}) {
    for (double x = -6; x < 6; x += 0.37) {
      constexpr double kStep = 1e-6;
      const double slope = (reference::activate(activation, x + kStep) -
                            reference::activate(activation, x - kStep)) /
                           (2 * kStep);
      EXPECT_NEAR(activation_slope(activation, static_cast<float>(x)), slope,
                  2e-6 * (1 + std::abs(x)))
          << static_cast<int>(activation) << " at " << x;
    }
  }
}

TEST(Backward, ProductsBeyondOneTile) {
  for (const auto& [n, k, m] : {std::array<int64_t, 3>{65, 300, 257}, {1, 256, 16}, {64, 1, 33}}) {
    const Matrix<float> a = gaussian(n, k, 1), v = gaussian(k, m, 2);
    Matrix<float> y = gaussian(n, m, 3);
    const Matrix<float> before = y;
    add_matmul(a.view(), v.view(), y.view());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        double sum = before(i, j), size = std::abs(sum);
        for (int64_t p = 0; p < k; ++p) {
          sum += double(a(i, p)) * v(p, j);
          size += std::abs(double(a(i, p)) * v(p, j));
        }
        EXPECT_NEAR(y(i, j), sum, 0x1p-24 * static_cast<double>(k + 1) * size);
      }
    }
  }
}

// sum of weight(i, c) mixed(i, c) over what attention makes, in double, position by position.
double mixed_sum(const AttentionDesc& a, const std::array<Matrix<double>, 3>& qkv,
                 const Matrix<float>& weight) {
  double sum = 0;
  const auto& [q, k, v] = qkv;
  for (int64_t h = 0; h < a.n_heads; ++h) {
    const int64_t of_q = h * a.d_head, of_kv = h / (a.n_heads / a.n_kv_heads) * a.d_head;
    for (int64_t i = 0; i < q.rows(); ++i) {
      const int64_t begin = a.window > 0 ? std::max<int64_t>(0, i + 1 - a.window) : 0;
      std::vector<double> p;
      for (int64_t j = begin; j <= i; ++j) {
        double score = 0;
        for (int64_t c = 0; c < a.d_head; ++c) score += q(i, of_q + c) * k(j, of_kv + c);
        p.push_back(a.scale * score);
        reference::soft_cap(a.soft_cap, p.back());
      }
      reference::softmax(p.data(), static_cast<int64_t>(p.size()));
      for (int64_t j = begin; j <= i; ++j) {
        for (int64_t c = 0; c < a.d_head; ++c) {
          sum += p[static_cast<size_t>(j - begin)] * v(j, of_kv + c) * weight(i, of_q + c);
        }
      }
    }
  }
  return sum;
}

// Longer than the tiles of queries that are taken together.
TEST(Backward, AttentionOverManyPositionsAgreesWithFiniteDifferences) {
  constexpr int64_t kRows = 150;
  AttentionDesc a{.n_heads = 4, .n_kv_heads = 2, .d_head = 10, .scale = 0.3};
  for (const auto& [soft_cap, window] : {std::pair<double, int64_t>{0, 0}, {1.5, 70}}) {
    a.soft_cap = soft_cap;
    a.window = window;
    const Heads heads{gaussian(kRows, 40, 1), gaussian(kRows, 20, 2), gaussian(kRows, 20, 3)};
    const Matrix<float> weight = gaussian(kRows, 40, 4), mixed = attend_whole(a, heads);
    const Heads d = attend_backward(a, heads, weight.view());
    const std::array<const Matrix<float>*, 3> at = {&heads.q, &heads.k, &heads.v};
    const std::array<const Matrix<float>*, 3> gradients = {&d.q, &d.k, &d.v};
    std::array<Matrix<double>, 3> exact;
    for (size_t side = 0; side < 3; ++side) {
      exact[side] = Matrix<double>(kRows, at[side]->cols());
      std::copy_n(at[side]->data(), kRows * at[side]->cols(), exact[side].data());
    }
    double expected = mixed_sum(a, exact, weight), made = 0;
    for (int64_t i = 0; i < kRows * 40; ++i) made += double(mixed.data()[i]) * weight.data()[i];
    EXPECT_NEAR(made, expected, 1e-5 * std::sqrt(kRows * 40.0));
    for (size_t side = 0; side < 3; ++side) {
      constexpr double kStep = 1e-6;
      const Matrix<float> e = gaussian(kRows, exact[side].cols(), 5 + side);
      const Matrix<double> kept = exact[side];
      double sums[2], along = 0, square = 0;
      for (int sign = 0; sign < 2; ++sign) {
        for (int64_t i = 0; i < kRows * e.cols(); ++i) {
          exact[side].data()[i] = kept.data()[i] + (sign == 0 ? kStep : -kStep) * e.data()[i];
        }
        sums[sign] = mixed_sum(a, exact, weight);
      }
      exact[side] = kept;
      for (int64_t i = 0; i < kRows * e.cols(); ++i) {
        const double g = gradients[side]->data()[i];
        along += g * e.data()[i];
        square += g * g;
      }
      EXPECT_NEAR((sums[0] - sums[1]) / (2 * kStep), along, 1e-5 * std::sqrt(square)) << side;
    }
  }
}

// The layer that is run again makes what the forward pass made: the same products, and sums of
// attention in another order.
TEST(Backward, TheLayerThatIsRunAgainIsThatOfTheForwardPass) {
  for (const std::string& name : fixture_names()) {
    const auto files = *ModelFiles::open(fixture_path(name));
    const ModelDesc& model = files->desc();
    RopeTables rope;
    const auto plain = std::make_shared<const KvRecipe>(KvRecipe::plain(DType::kF32));
    for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
      const LayerWeights weights = *files->layer(i);
      const Matrix<float> h = gaussian(29, model.d_model, 1);
      const AttentionDesc& attention = model.layers[static_cast<size_t>(i)].attention;
      LayerKv kv({attention.n_kv_heads, attention.d_head}, h.rows(), plain);
      const SequenceRows rows{&kv, 0, h.rows(), h.rows()};
      Matrix<float> expected = h;
      forward_layer({&model, &rope, i}, weights, {&rows, 1}, expected.view());
      const LayerBackward again({&model, &rope, i}, weights, h.view());
      for (int64_t j = 0; j < h.rows() * h.cols(); ++j) {
        const float value = expected.data()[j];
        ASSERT_NEAR(again.output().data()[j], value, 1e-5 * (1 + std::abs(value))) << name;
      }
    }
  }
}

TEST(Backward, RefusesWhatHasNoAdjoint) {
  const auto files = *ModelFiles::open(fixture_path("llama"));
  const LayerWeights plain = *files->layer(1);
  EXPECT_TRUE(check_differentiable(files->desc(), 1, plain));

  ModelDesc sliced = files->desc();
  sliced.layers[1].d_in = sliced.layers[1].d_mid = sliced.layers[1].d_out = 16;
  const Status of_sliced = check_differentiable(sliced, 1, plain);
  ASSERT_FALSE(of_sliced);
  EXPECT_EQ(of_sliced.error().message, "layers.1: no gradients of a sliced stream");

  LayerWeights scaled = plain;
  scaled.online.ffn.add(*make_diagonal({1, 2}));
  EXPECT_FALSE(check_differentiable(files->desc(), 1, scaled));

  LayerWeights rounded = plain;
  rounded.at(Role::kDown, -1).rounding = std::make_shared<const ActRounding>();
  const Status of_rounded = check_differentiable(files->desc(), 1, rounded);
  ASSERT_FALSE(of_rounded);
  EXPECT_EQ(of_rounded.error().message,
            "layers.1.down: no gradients of a matrix that rounds what it reads");

  EndWeights ends = *files->ends();
  EXPECT_TRUE(check_differentiable(ends));
  ends.residual.add(*make_diagonal({1, 2}));
  EXPECT_FALSE(check_differentiable(ends));
}

}  // namespace
}  // namespace quern
