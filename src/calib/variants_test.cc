// SPDX-License-Identifier: Apache-2.0
#include "calib/variants.h"

#include <gtest/gtest.h>

#include "eval/divergence.h"

namespace quern {
namespace {

class VariantsOfTiny : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = *Model::open(QUERN_SOURCE_DIR "/models/tiny");
    for (int s = 0; s < 2; ++s) {
      std::vector<Token> sample;
      for (int i = 0; i < 17 + s; ++i) sample.push_back((37 * i + 11 * s) % 4096);
      corpus_.samples.push_back(std::move(sample));
    }
  }

  const ModelParts& parts() const { return model_->parts(); }
  int n_layers() const { return static_cast<int>(parts().layers.size()); }
  const LayerWeights& layer(int i) const { return parts().layers[static_cast<size_t>(i)]; }

  Matrix<float> logits(const Model& model, const std::vector<Token>& sample) const {
    const auto n = static_cast<int64_t>(sample.size());
    KvCache cache = *model.make_cache(n, *KvCacheRecipe::parse("f32"));
    Matrix<float> hidden(n, model.desc().d_model), logits(n, model.desc().n_vocab);
    EXPECT_TRUE(model.forward(cache, sample, hidden.view()));
    model.logits(hidden.view(), logits.view());
    return logits;
  }

  // The divergence of a model of these parts, by passes of its own.
  double divergence_of(ModelParts other) const {
    const auto changed = Model::assemble(std::move(other));
    std::vector<double> all;
    for (const auto& sample : corpus_.samples) {
      std::vector<double> kl(sample.size());
      divergences(logits(*model_, sample), logits(*changed, sample), kl);
      all.insert(all.end(), kl.begin(), kl.end());
    }
    return mean_divergence(all);
  }

  std::unique_ptr<Model> model_;
  Corpus corpus_;
};

TEST_F(VariantsOfTiny, DivergeAsModelsOfTheirOwn) {
  const auto go = [] { return true; };
  Variants variants(model_->desc(), corpus_, parts().ends);
  ModelParts other_embed = parts(), other_layer = parts(), other_head = parts();
  other_embed.ends.embed.dense += static_cast<ptrdiff_t>(sizeof(uint16_t));  // a column further
  other_embed.ends.embed.n_out -= 1;
  other_layer.layers[2] = layer(1);
  for (float& gain : other_head.ends.final_norm.gain) gain *= 1.5f;
  variants.add_ends(other_embed.ends);
  for (int i = 0; i < n_layers(); ++i) {
    if (i == 2) {
      ASSERT_TRUE(variants.add_layer(i, layer(1), go));
      ASSERT_TRUE(variants.add_layer(i, layer(2), go));  // itself
    }
    ASSERT_TRUE(variants.advance(i, layer(i), go));
  }
  variants.add_ends(other_head.ends);
  const auto kl = variants.divergences(go);
  ASSERT_TRUE(kl.has_value());
  ASSERT_EQ(kl->size(), 4u);
  EXPECT_EQ((*kl)[0], divergence_of(other_embed));
  EXPECT_EQ((*kl)[1], divergence_of(other_layer));
  EXPECT_EQ((*kl)[2], 0);
  EXPECT_EQ((*kl)[3], divergence_of(other_head));
  for (const size_t changed : {0, 1, 3}) EXPECT_GT((*kl)[changed], 1e-3);
}

TEST_F(VariantsOfTiny, CanBeCancelled) {
  int asked = 0;
  const auto stop = [&] { return ++asked < 3; };
  Variants variants(model_->desc(), corpus_, parts().ends);
  EXPECT_TRUE(variants.add_layer(0, layer(0), stop));
  EXPECT_FALSE(variants.advance(0, layer(0), stop));
}

}  // namespace
}  // namespace quern
