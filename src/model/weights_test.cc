// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <gtest/gtest.h>

#include <set>

#include "model/model_test_util.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;
using test::in_memory;
using test::MemoryCheckpoint;

WeightStore opened(Result<WeightStore> store) {
  EXPECT_TRUE(store.has_value()) << (store ? "" : store.error().message);
  return *std::move(store);
}

std::string refusal(std::shared_ptr<MemoryCheckpoint> checkpoint) {
  const auto store = WeightStore::open(std::move(checkpoint));
  return store ? "accepted" : store.error().message;
}

Matrix<float> loaded(const WeightStore& store, const WeightId& id, Part part = Part::kWeight) {
  Result<Matrix<float>> weight = store.load(id, part);
  EXPECT_TRUE(weight.has_value()) << (weight ? "" : weight.error().message);
  return *std::move(weight);
}

TEST(Weights, CountEveryStoredParameterOnce) {
  for (const std::string& name : fixture_names()) {
    const WeightStore store = opened(WeightStore::open(fixture_path(name)));
    int64_t expected = 0;
    for (const TensorInfo& tensor : store.checkpoint().tensors()) {
      expected += element_count(tensor.shape).value();
    }
    EXPECT_EQ(store.parameter_count(), expected) << name;
  }
}

TEST(Weights, IdsAreDistinctAndExist) {
  for (const std::string& name : fixture_names()) {
    const WeightStore store = opened(WeightStore::open(fixture_path(name)));
    const std::set<WeightId> distinct(store.weight_ids().begin(), store.weight_ids().end());
    EXPECT_EQ(distinct.size(), store.weight_ids().size());
    EXPECT_EQ(store.weight_ids(), weight_ids(store.model()));
    EXPECT_EQ(store.weight_ids().front(), WeightId{Role::kEmbed});
    for (const WeightId& id : store.weight_ids()) EXPECT_TRUE(store.exists(id)) << to_string(id);
  }
}

TEST(Weights, LoadInTheShapeTheyPromise) {
  for (const std::string& name : fixture_names()) {
    const WeightStore store = opened(WeightStore::open(fixture_path(name)));
    for (const WeightId& id : store.weight_ids()) {
      const Shape shape = store.shape(id);
      const Matrix<float> weight = loaded(store, id);
      EXPECT_EQ(weight.rows(), shape.size() == 1 ? 1 : shape[0]) << name << to_string(id);
      EXPECT_EQ(weight.cols(), shape.back()) << name << to_string(id);
      if (!store.exists(id, Part::kBias)) continue;
      const Matrix<float> bias = loaded(store, id, Part::kBias);
      EXPECT_EQ(bias.rows(), 1);
      EXPECT_EQ(bias.cols(), shape[0]) << name << to_string(id);
    }
  }
}

TEST(Weights, LoadRowsAreRowsOfTheWhole) {
  // Plain, fused, transposed and head-interleaved storage; ranges across heads' edges.
  for (const char* name : {"llama", "phi3", "gpt2", "gpt_neox", "gpt_neox-serial"}) {
    const WeightStore store = opened(WeightStore::open(fixture_path(name)));
    for (Role role : {Role::kQ, Role::kK, Role::kV, Role::kUp}) {
      const WeightId id{role, 1};
      const Matrix<float> whole = loaded(store, id);
      for (int64_t first = 0; first < whole.rows(); first += 3) {
        for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{7}, whole.rows() - first}) {
          if (n > whole.rows() - first) continue;
          Matrix<float> part(n, whole.cols());
          ASSERT_TRUE(store.load_rows(id, first, n, part.data()).has_value());
          EXPECT_TRUE(std::equal(part.data(), part.data() + n * whole.cols(), whole.row(first)));
        }
      }
    }
  }
}

TEST(Weights, InterleavedHeadsAndTransposesComeFromTheirPlaces) {
  auto neox = in_memory("gpt_neox");
  const TensorInfo& fused = *neox->find("gpt_neox.layers.0.attention.query_key_value.weight");
  const auto* stored = reinterpret_cast<const float*>(fused.bytes);
  const Matrix<float> k = loaded(opened(WeightStore::open(neox)), {Role::kK, 0});
  // d_head 16: row 1 of head 1's keys is stored row 48 + 16 + 1.
  EXPECT_EQ(k(17, 5), stored[65 * 32 + 5]);

  auto gpt2 = in_memory("gpt2");
  const TensorInfo& conv = *gpt2->find("transformer.h.1.attn.c_attn.weight");
  const auto* transposed = reinterpret_cast<const float*>(conv.bytes);
  const Matrix<float> v = loaded(opened(WeightStore::open(gpt2)), {Role::kV, 1});
  EXPECT_EQ(v(3, 7), transposed[7 * 144 + 96 + 3]);
}

TEST(Weights, AreDirectOnlyWhenTheyAreAWholeTensor) {
  const WeightStore phi = opened(WeightStore::open(fixture_path("phi3")));
  EXPECT_EQ(phi.direct({Role::kQ, 0}), nullptr);
  EXPECT_EQ(phi.stored({Role::kQ, 0}).name, "model.layers.0.self_attn.qkv_proj.weight");
  ASSERT_NE(phi.direct({Role::kO, 0}), nullptr);
  EXPECT_EQ(phi.direct({Role::kO, 0})->name, "model.layers.0.self_attn.o_proj.weight");
  // Bytes are only known to lie in order in a directory.
  EXPECT_EQ(opened(WeightStore::open(in_memory("phi3"))).direct({Role::kO, 0}), nullptr);
  const WeightStore gpt2 = opened(WeightStore::open(fixture_path("gpt2")));
  EXPECT_EQ(gpt2.direct({Role::kUp, 0}), nullptr);
  EXPECT_NE(gpt2.direct({Role::kUp, 0}, Part::kBias), nullptr);
}

TEST(Weights, ReportAMissingTensor) {
  auto checkpoint = in_memory("llama");
  checkpoint->remove("model.layers.1.mlp.up_proj.weight");
  const std::string message = refusal(checkpoint);
  EXPECT_NE(message.find("model.layers.1.mlp.up_proj.weight"), std::string::npos) << message;
  EXPECT_NE(message.find("[48, 32]"), std::string::npos) << message;
}

TEST(Weights, ReportEveryWrongShape) {
  for (const std::string& name : fixture_names()) {
    const auto original = in_memory(name);
    for (const TensorInfo& tensor : original->tensors()) {
      const std::vector<Shape> wrong = {{}, {tensor.shape[0] + 1}, {1, 1, 1}, {0, 0}};
      for (const Shape& shape : wrong) {
        auto damaged = in_memory(name);
        damaged->edit(tensor.name).shape = shape;
        const std::string message = refusal(damaged);
        EXPECT_NE(message.find(tensor.name), std::string::npos) << message;
        EXPECT_NE(message.find(to_string(shape)), std::string::npos) << message;
      }
    }
    if (original->tensors().size() > 20) continue;
    const TensorInfo& last = original->tensors().back();
    auto damaged = in_memory(name);
    damaged->edit(last.name).dtype = DType::kI8;
    EXPECT_NE(refusal(damaged).find("I8"), std::string::npos);
  }
}

TEST(Weights, ReportAConfigThatPromisesMoreThanTheFileHas) {
  auto checkpoint = in_memory("mixtral");
  checkpoint->edit_config()["num_hidden_layers"] = 10'000;
  checkpoint->edit_config()["num_local_experts"] = 65'536;
  EXPECT_NE(refusal(checkpoint).find("block_sparse_moe.gate.weight"), std::string::npos);
}

TEST(Weights, AreFoundUnderTheNamesOfABareModel) {
  for (const char* name : {"gpt2", "opt", "gpt_neox"}) {
    auto checkpoint = in_memory(name);
    const WeightStore whole = opened(WeightStore::open(fixture_path(name)));
    const std::string prefix(whole.arch().base_prefix);
    const std::vector<TensorInfo> tensors = checkpoint->tensors();
    for (const TensorInfo& tensor : tensors) {
      if (tensor.name.starts_with(prefix)) {
        checkpoint->rename(tensor.name, tensor.name.substr(prefix.size()));
      }
    }
    const WeightStore bare = opened(WeightStore::open(checkpoint));
    for (const WeightId& id : whole.weight_ids()) EXPECT_EQ(loaded(bare, id), loaded(whole, id));
  }
}

}  // namespace
}  // namespace quern
