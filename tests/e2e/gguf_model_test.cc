// SPDX-License-Identifier: Apache-2.0
// A model read from GGUF computes what the same model computes from a Hugging Face directory, bit
// for bit. The files are those of scripts/make_gguf_fixtures.py; the directory is written here from
// the names, shapes and config beside them.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/reference_forward.h"

namespace quern {
namespace {

std::string data_file(std::string_view name) {
  return fmt::format("{}/tests/data/gguf/{}", QUERN_SOURCE_DIR, name);
}

// A directory with the config of `stem`, its tensors filled from the GGUF checkpoint.
void write_directory(const std::string& stem, const Checkpoint& gguf, const std::string& path) {
  const auto expected = read_json_file(data_file(stem + ".json"));
  ASSERT_TRUE(expected) << expected.error().message;
  std::filesystem::create_directories(path);
  ASSERT_TRUE(write_file_atomically(path + "/config.json", (*expected)["config"].dump()));
  std::vector<TensorSpec> specs;
  for (const auto& [name, shape] : (*expected)["tensors"].items()) {
    specs.push_back({name, DType::kF32, shape.get<Shape>()});
  }
  auto writer = SafetensorsWriter::create(path + "/model.safetensors", specs, {});
  ASSERT_TRUE(writer) << writer.error().message;
  for (const TensorSpec& spec : writer->order()) {
    const TensorInfo* tensor = gguf.find(spec.name);
    ASSERT_NE(tensor, nullptr) << spec.name;
    std::vector<float> values(static_cast<size_t>(*element_count(spec.shape)));
    ASSERT_TRUE(gguf.read_rows(*tensor, 0, matrix_rows(*tensor), values.data()));
    ASSERT_TRUE(writer->append(spec.name, values.data(), values.size() * sizeof(float)));
  }
  ASSERT_TRUE(writer->finish());
}

Matrix<float> logits_of(const std::string& path) {
  const auto store = WeightStore::open(path);
  EXPECT_TRUE(store) << store.error().message;
  if (!store) return {};
  const auto weights = DenseWeights<float>::load(*store);
  EXPECT_TRUE(weights);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 50; ++i) ids.push_back(i * 17 % 40);
  return reference_logits(store->model(), *weights, std::span<const int32_t>(ids));
}

class GgufModel : public ::testing::TestWithParam<std::array<const char*, 2>> {};

TEST_P(GgufModel, LogitsEqualThoseOfTheDirectory) {
  const std::string stem = GetParam()[0], file = data_file(GetParam()[1]);
  const std::string path = ::testing::TempDir() + "quern_gguf_model_" + stem;
  const auto gguf = Checkpoint::open(file);
  ASSERT_TRUE(gguf) << gguf.error().message;
  ASSERT_NO_FATAL_FAILURE(write_directory(stem, **gguf, path));
  const Matrix<float> got = logits_of(file), expected = logits_of(path);
  ASSERT_EQ(got.rows(), 50);
  EXPECT_TRUE(std::isfinite(got(49, 0)));
  EXPECT_TRUE(got == expected);
  std::filesystem::remove_all(path);
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufModel,
    ::testing::Values(std::array{"llama", "llama.gguf"}, std::array{"llama3", "llama3.gguf"},
                      std::array{"llama-factors", "llama-factors.gguf"},
                      std::array{"mistral", "mistral.gguf"}, std::array{"mixtral", "mixtral.gguf"},
                      std::array{"qwen2", "qwen2-00001-of-00003.gguf"},
                      std::array{"qwen3", "qwen3.gguf"}, std::array{"qwen3moe", "qwen3moe.gguf"},
                      std::array{"gemma2", "gemma2.gguf"}, std::array{"phi3", "phi3.gguf"},
                      std::array{"gpt2", "gpt2.gguf"}));

}  // namespace
}  // namespace quern
