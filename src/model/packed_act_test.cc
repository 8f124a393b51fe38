// SPDX-License-Identifier: Apache-2.0
// What a model's file says of the inputs of its matrices, and what it must not say.
#include <gtest/gtest.h>

#include "model/model_test_util.h"
#include "model/packed.h"

namespace quern {
namespace {

PackedTensor tensor(const std::string& act) {
  PackedTensor tensor;
  tensor.codec = *make_codec("int(4, group=16)");
  tensor.n_out = 8;
  tensor.n_in = 32;
  tensor.act = *make_act(act);
  return tensor;
}

TEST(PackedAct, IsWrittenAndReadBack) {
  Packed packed;
  packed.recipe = "act(int(8)) | rtn(int(4))";
  packed.tensors.emplace("a", tensor("int(8)"));
  packed.tensors.emplace("b", tensor("fp8"));
  packed.tensors.emplace("c", tensor("int(8)"));
  packed.tensors.emplace("d", tensor("int(8)"));
  packed.tensors.at("d").act = nullptr;
  const auto read = Packed::from_config({{"quantization_config", packed.to_json()}});
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(read->tensors.at("a").act->spec(), "int(8)");
  EXPECT_EQ(read->tensors.at("b").act->spec(), "fp8");
  EXPECT_EQ(read->tensors.at("d").act, nullptr);
  EXPECT_EQ(read->tensors.at("a").act, read->tensors.at("c").act) << "equal texts share one";
}

TEST(PackedAct, AnUnknownOneIsRefused) {
  Packed packed;
  packed.recipe = "x";
  packed.tensors.emplace("a", tensor("int(8)"));
  for (const Json& bad : {Json("int(9)"), Json("none"), Json(8), Json("")}) {
    Json json = packed.to_json();
    json["tensors"]["a"]["act"] = bad;
    const auto read = Packed::from_config({{"quantization_config", json}});
    ASSERT_FALSE(read.has_value()) << bad;
    EXPECT_NE(read.error().message.find("tensors.a"), std::string::npos) << read.error().message;
  }
}

TEST(PackedAct, RangesAreCheckedBeforeUse) {
  const auto checkpoint = test::in_memory("llama");
  const PackedTensor packed = tensor("int(7, per=tensor, sym=false, scale=static)");
  EXPECT_FALSE(find_rounding(*checkpoint, "w", packed)) << "there are none";
  checkpoint->put("w.input_ranges", {2}, {-1.0f, 2.0f});
  const auto rounding = find_rounding(*checkpoint, "w", packed);
  ASSERT_TRUE(rounding.has_value()) << rounding.error().message;
  EXPECT_EQ((*rounding)->ranges, (std::vector<float>{-1, 2}));
  for (const float bad : {std::nanf(""), INFINITY}) {
    checkpoint->put("w.input_ranges", {2}, {-1.0f, bad});
    EXPECT_FALSE(find_rounding(*checkpoint, "w", packed)) << bad;
  }
  for (const Shape& shape : {Shape{1}, Shape{3}, Shape{1, 2}, Shape{}}) {
    checkpoint->put("w.input_ranges", shape, {-1, 2, 3});
    EXPECT_FALSE(find_rounding(*checkpoint, "w", packed)) << to_string(shape);
  }
  checkpoint->put("w.input_ranges", {2}, {-1.0f, 2.0f});
  checkpoint->edit("w.input_ranges").dtype = DType::kI32;
  EXPECT_FALSE(find_rounding(*checkpoint, "w", packed));
  const auto dynamic = find_rounding(*checkpoint, "v", tensor("int(8)"));
  ASSERT_TRUE(dynamic.has_value());
  EXPECT_TRUE((*dynamic)->ranges.empty());
}

}  // namespace
}  // namespace quern
