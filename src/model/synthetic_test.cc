// SPDX-License-Identifier: Apache-2.0
#include "model/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "model/model_test_util.h"
#include "model/weights.h"

namespace quern {
namespace {

// Every codec gives weights of the variance that was asked for, whatever its planes are: codes,
// scales, tables and books of few rows make sense when they are repeated.
TEST(Synthetic, EveryCodecFillsAMatrixWithWeightsOfUnitGain) {
  constexpr int64_t kOut = 200, kIn = 256;
  for (const CodecInfo& info : codecs()) {
    for (const std::string_view text : info.examples) {
      SCOPED_TRACE(text);
      const auto weight = synthetic_linear(std::string(text), kOut, kIn, 1);
      ASSERT_TRUE(weight) << weight.error().message;
      Matrix<float> w(kOut, kIn);
      decode_rows(*weight, 0, kOut, w.data());
      for (const int64_t first : {int64_t{0}, kOut / 2}) {
        double sum = 0;
        for (int64_t i = first; i < first + kOut / 2; ++i) {
          for (int64_t j = 0; j < kIn; ++j) sum += std::pow(double{w(i, j)}, 2);
        }
        const double gain = sum / (kOut / 2);
        EXPECT_GT(gain, 0.3) << "rows from " << first;
        EXPECT_LT(gain, 1.5) << "rows from " << first;
      }
    }
  }
}

TEST(Synthetic, RowsRepeat) {
  for (const char* text : {"f32", "bf16", "int(4, group=64)", "trellis(2)"}) {
    const auto weight = synthetic_linear(text, 512, 192, 2);
    ASSERT_TRUE(weight) << text;
    Matrix<float> w(512, 192);
    decode_rows(*weight, 0, 512, w.data());
    for (int64_t i = 0; i < 256; ++i) {
      EXPECT_EQ(0, std::memcmp(w.row(i), w.row(i + 256), 192 * sizeof(float))) << text << i;
    }
    EXPECT_NE(0, std::memcmp(w.row(0), w.row(1), 192 * sizeof(float))) << text;
  }
}

// What is read for a token is the runtime form, and that is what is counted.
TEST(Synthetic, CodesThatDecodeSlowlyAreReadInTheirRuntimeForm) {
  const auto weight = synthetic_linear("pvq(2)", 48, 256, 5);
  ASSERT_TRUE(weight);
  EXPECT_TRUE(weight->codec->spec().starts_with("pulses(")) << weight->codec->spec();
  // Pulses up to 4 take 4 bits, steps of four groups a row four floats; codes took 2 bits.
  EXPECT_EQ(weight->n_bytes(), 48u * (256 * 4 / 8 + 4 * 4));
}

TEST(Synthetic, ShapesHaveTheSizesOfTheirNames) {
  const auto parameters = [](std::string_view name) {
    const ModelDesc desc = *shape_desc(name);
    double total = 0;
    for (const WeightId& id : weight_ids(desc)) {
      if (has_weight(desc, id)) {
        total += static_cast<double>(*element_count(weight_shape(desc, id)));
      }
    }
    return total;
  };
  for (const std::string_view name : model_shapes()) ASSERT_TRUE(shape_desc(name)) << name;
  EXPECT_NEAR(parameters("tinyllama"), 1.100e9, 1e6);
  EXPECT_NEAR(parameters("llama-7b"), 6.738e9, 1e6);
  EXPECT_NEAR(parameters("llama-3-8b"), 8.030e9, 1e6);
  EXPECT_NEAR(parameters("llama-3.2-1b"), 1.236e9, 1e6);
  EXPECT_NEAR(parameters("llama-13b"), 13.016e9, 1e6);
  EXPECT_NEAR(parameters("mistral-7b"), 7.242e9, 1e6);
  EXPECT_NEAR(parameters("smollm-135m"), 134.5e6, 1e5);
  EXPECT_NEAR(parameters("qwen-0.5b"), 494e6, 1e6);
  const auto bundled = Model::open(QUERN_SOURCE_DIR "/models/tiny");
  ASSERT_TRUE(bundled);
  EXPECT_EQ(parameters("tiny"), static_cast<double>((*bundled)->files().n_params()));
}

TEST(Synthetic, AModelRunsAndCountsWhatItReads) {
  const auto model = synthetic_model("tiny", {"int(4, group=64)", "f16", 3});
  ASSERT_TRUE(model) << model.error().message;
  // 4.25 bits in the layers; the head, which is the embedding, in 16.
  const double layers = 6.0 * (256 * 256 * 2 + 256 * 128 * 2 + 256 * 768 * 3);
  EXPECT_EQ(static_cast<double>((*model)->bytes_per_token()), layers * 4.25 / 8 + 4096.0 * 256 * 2);
  const std::vector<Token> ids = {1, 2, 3, 4, 5};
  KvCache cache = *(*model)->make_cache(8);
  Matrix<float> hidden(5, 256), logits(5, 4096);
  ASSERT_TRUE((*model)->forward(cache, ids, hidden.view()));
  (*model)->logits(hidden.view(), logits.view());
  for (int64_t i = 0; i < 5 * 4096; ++i) ASSERT_TRUE(std::isfinite(logits.data()[i]));
}

TEST(Synthetic, TheSameFromAnyNumberOfThreads) {
  const auto logits_of = [](int n_threads) {
    set_thread_count(n_threads);
    const auto model = synthetic_model("tiny", {"table(nf, 4)", "", 4});
    KvCache cache = *(*model)->make_cache(1);
    Matrix<float> hidden(1, 256), logits(1, 4096);
    const Token id = 7;
    EXPECT_TRUE((*model)->forward(cache, {&id, 1}, hidden.view()));
    (*model)->logits(hidden.view(), logits.view());
    return logits;
  };
  const Matrix<float> one = logits_of(1);
  EXPECT_EQ(logits_of(3), one);
  set_thread_count(0);
}

TEST(Synthetic, WhatCannotBeIsRefused) {
  const auto shape = synthetic_model("llama-9000b", {});
  ASSERT_FALSE(shape);
  EXPECT_NE(shape.error().message.find("tinyllama"), std::string::npos);
  const auto codec = synthetic_model("tiny", {"fly(4)", "", 0});
  ASSERT_FALSE(codec);
  EXPECT_NE(codec.error().message.find("fly"), std::string::npos);
}

}  // namespace
}  // namespace quern
