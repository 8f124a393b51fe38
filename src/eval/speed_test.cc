// SPDX-License-Identifier: Apache-2.0
#include "eval/speed.h"

#include <gtest/gtest.h>

#include "model/synthetic.h"

namespace quern {
namespace {

std::unique_ptr<Model> tiny(const std::string& codec, const std::string& head_codec = "") {
  auto model = synthetic_model("tiny", {codec, head_codec, 1});
  EXPECT_TRUE(model);
  return *std::move(model);
}

TEST(Speed, HasARateForEveryRunAndReportsProgress) {
  const auto model = tiny("int(4)");
  SpeedOptions options;
  options.n_prompt = 3;
  options.n_generate = 2;
  options.n_sequences = 3;
  options.repetitions = 4;
  std::vector<double> shares;
  options.proceed = [&](double done, std::string_view) {
    shares.push_back(done);
    return true;
  };
  const auto speed = measure_speed(*model, options);
  ASSERT_TRUE(speed) << speed.error().message;
  for (const Rates& rates : {speed->prompt, speed->generated}) {
    EXPECT_EQ(rates.runs.size(), 4u);
    EXPECT_GT(rates.min(), 0);
    EXPECT_GE(rates.median(), rates.min());
  }
  EXPECT_EQ(shares.size(), 4u * (1 + 2));
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_LT(shares.back(), 1);
}

TEST(Speed, OnlineOperatorsHaveTheirShareOfTheTime) {
  SyntheticOptions synthetic;
  synthetic.codec = "int(4)";
  SpeedOptions options;
  options.n_prompt = 16;
  options.n_generate = 2;
  options.repetitions = 1;
  for (const bool is_rotated : {false, true}) {
    if (is_rotated) {
      synthetic.basis.add(Site::kFfn, *make_hadamard(768));
      synthetic.basis.add(Site::kResidual, *make_hadamard(256));
      synthetic.basis.add(Site::kQk, *make_hadamard(64));
    }
    const auto model = synthetic_model("tiny", synthetic);
    ASSERT_TRUE(model) << model.error().message;
    const auto speed = measure_speed(**model, options);
    ASSERT_TRUE(speed);
    for (const Rates& rates : {speed->prompt, speed->generated}) {
      ASSERT_EQ(rates.online.size(), 1u);
      EXPECT_EQ(rates.median_online() > 0, is_rotated);
      EXPECT_LT(rates.median_online(), 1);
    }
  }
}

// Behind a cache of any depth: each run goes on from the same place.
TEST(Speed, AttentionHasItsShareOfTheTimeAndOfTheBytes) {
  const auto model = tiny("int(4)");
  SpeedOptions options;
  options.depth = 300;
  options.n_prompt = 1;
  options.n_generate = 2;
  options.repetitions = 2;
  for (const char* text : {"f16", "q8"}) {
    options.kv = *KvRecipe::parse(text);
    const auto speed = measure_speed(*model, options);
    ASSERT_TRUE(speed) << speed.error().message;
    for (const Rates& rates : {speed->prompt, speed->generated}) {
      ASSERT_EQ(rates.attention.size(), 2u);
      EXPECT_GT(rates.median_attention(), 0);
      EXPECT_LT(rates.median_attention(), 1);
    }
    // 6 layers of 2 heads of 64 dimensions; 303 positions, 256 of them at 9 bits in `q8`.
    const int64_t numbers = 2 * 6 * 2 * 64;
    EXPECT_EQ(speed->kv_bytes_per_token,
              options.kv.of(0)->is_coded() ? numbers * (256 * 9 / 8 + 47 * 2) : numbers * 303 * 2);
  }
}

TEST(Speed, StopsWhenAskedAndRefusesWhatHasNoRoom) {
  const auto model = tiny("f16");
  SpeedOptions options;
  options.n_prompt = 2;
  options.n_generate = 5;
  int n_asked = 0;
  options.proceed = [&](double, std::string_view) { return ++n_asked < 3; };
  const auto stopped = measure_speed(*model, options);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(n_asked, 3);
  SpeedOptions longest;
  longest.n_prompt = model->desc().n_context;
  EXPECT_FALSE(measure_speed(*model, longest));
  SpeedOptions none;
  none.n_sequences = 0;
  EXPECT_FALSE(measure_speed(*model, none));
}

TEST(Speed, MedianAndMinimumAreThoseOfTheRuns) {
  const Rates rates{{5, 1, 9, 7, 3}};
  EXPECT_EQ(rates.median(), 5);
  EXPECT_EQ(rates.min(), 1);
  EXPECT_EQ(Rates().median(), 0);
  EXPECT_EQ(Rates().min(), 0);
}

TEST(Speed, WorkAndCodecsAreThoseOfTheMatrices) {
  const auto model = tiny("int(4, group=64)", "bf16");
  const WeightWork work = weight_work(*model);
  EXPECT_EQ(work.per_token, 6.0 * (256 * 256 * 2 + 256 * 128 * 2 + 256 * 768 * 3));
  EXPECT_EQ(work.per_head, 256.0 * 4096);
  EXPECT_EQ(codec_names(*model), "int(4, group=64), bf16");
}

TEST(Speed, OnlyCodedMatricesAreDecoded) {
  EXPECT_EQ(measure_decoding(*tiny("bf16")), 0);
  EXPECT_GT(measure_decoding(*tiny("trellis(2)", "f16")), 0);
}

}  // namespace
}  // namespace quern
