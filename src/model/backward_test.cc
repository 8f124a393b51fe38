// SPDX-License-Identifier: Apache-2.0
// Parts of the adjoint by themselves; whole gradients are tested in calib/gradients_test.cc.
#include "model/backward.h"

#include <gtest/gtest.h>

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
