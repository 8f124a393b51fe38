// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/float_types.h"
#include "formats/checkpoint.h"
#include "formats/float8.h"
#include "formats/safetensors.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

// An empty folder of its own.
std::string folder(const char* name) {
  const std::string path = ::testing::TempDir() + "quern_hf_" + name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

void put(const std::string& path, std::string_view text) {
  ASSERT_TRUE(write_file_atomically(path, text));
}

// A file of F32 vectors of two entries.
void put_tensors(const std::string& path, const std::vector<std::string>& names) {
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) specs.push_back({name, DType::kF32, {2}});
  auto writer = SafetensorsWriter::create(path, specs, {});
  ASSERT_TRUE(writer) << writer.error().message;
  const float values[2] = {1, 2};
  for (const TensorSpec& spec : writer->order()) ASSERT_TRUE(writer->append(spec.name, values, 8));
  ASSERT_TRUE(writer->finish());
}

std::string problem(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  return checkpoint ? "" : checkpoint.error().message;
}

bool says(const std::string& message, std::string_view part) {
  return message.find(part) != std::string::npos;
}

constexpr const char* kIndex = "/model.safetensors.index.json";

std::string two_shards(const char* name) {
  const std::string path = folder(name);
  put(path + "/config.json", R"({"model_type":"llama"})");
  put_tensors(path + "/one.safetensors", {"a", "b"});
  put_tensors(path + "/two.safetensors", {"c"});
  put(path + kIndex, R"({"metadata":{"total_size":1},"weight_map":)"
                     R"({"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}})");
  return path;
}

constexpr DType kPlainTypes[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16};
constexpr float kValues[6] = {0, -1, 2.5f, 65504, 0.125f, -3};

// A tensor of every float type: kValues as [3, 2], four codes of the 8-bit types, odd shapes.
void put_every_type(const std::string& path) {
  std::vector<TensorSpec> specs;
  for (const DType type : kPlainTypes) {
    specs.push_back({std::string(dtype_name(type)), type, {3, 2}});
  }
  specs.push_back({"e4m3", DType::kF8E4M3, {2, 2}});
  specs.push_back({"e5m2", DType::kF8E5M2, {4}});
  specs.push_back({"scalar", DType::kF32, {}});
  specs.push_back({"int", DType::kI32, {1}});
  specs.push_back({"empty", DType::kF32, {0, 4}});
  auto writer = SafetensorsWriter::create(path, specs, {});
  ASSERT_TRUE(writer);
  const uint8_t e4m3[4] = {0x38, 0xfe, 0x01, 0x7f}, e5m2[4] = {0x3c, 0xc0, 0x7c, 0x01};
  for (const TensorSpec& spec : std::vector<TensorSpec>(writer->order())) {
    std::vector<std::byte> bytes(static_cast<size_t>(*element_count(spec.shape) * 8));
    size_t n = bytes.size() / 8 * static_cast<size_t>(dtype_bits(spec.dtype)) / 8;
    if (is_plain_float(spec.dtype) && !bytes.empty()) {
      convert_from_float(kValues, *element_count(spec.shape), spec.dtype, bytes.data());
    } else if (spec.dtype == DType::kF8E4M3 || spec.dtype == DType::kF8E5M2) {
      std::memcpy(bytes.data(), spec.dtype == DType::kF8E4M3 ? e4m3 : e5m2, 4);
    }
    ASSERT_TRUE(writer->append(spec.name, bytes.data(), n));
  }
  ASSERT_TRUE(writer->finish());
}

TEST(HfCheckpoint, ReadsRowsOfEveryFloatType) {
  const std::string path = folder("types");
  put(path + "/config.json", R"({"hidden_size":3})");
  put_every_type(path + "/model.safetensors");
  const auto opened = Checkpoint::open(path);
  ASSERT_TRUE(opened) << opened.error().message;
  const Checkpoint& checkpoint = **opened;
  EXPECT_EQ(checkpoint.config()["hidden_size"], 3);
  EXPECT_EQ(checkpoint.path(), path);
  EXPECT_EQ(checkpoint.tensor_bytes(), 6u * (8 + 4 + 2 + 2) + 4 + 4 + 4 + 4);
  float got[6] = {};
  for (const DType type : kPlainTypes) {
    const TensorInfo* tensor = checkpoint.find(dtype_name(type));
    ASSERT_NE(tensor, nullptr);
    ASSERT_TRUE(checkpoint.read_rows(*tensor, 1, 2, got));
    for (int i = 0; i < 4; ++i) {
      const float expected =
          type == DType::kBF16 ? bf16_to_float(float_to_bf16(kValues[i + 2])) : kValues[i + 2];
      EXPECT_EQ(got[i], expected) << dtype_name(type);
    }
    EXPECT_FALSE(checkpoint.read_rows(*tensor, 2, 2, got));
    EXPECT_FALSE(checkpoint.read_rows(*tensor, -1, 1, got));
    EXPECT_FALSE(checkpoint.read_rows(*tensor, INT64_MAX, INT64_MAX, got));
    EXPECT_TRUE(checkpoint.read_rows(*tensor, 3, 0, got));
    checkpoint.release(*tensor);
    ASSERT_TRUE(checkpoint.read_rows(*tensor, 0, 1, got)) << "released pages come back";
    EXPECT_EQ(got[1], -1);
  }
  ASSERT_TRUE(checkpoint.read_rows(*checkpoint.find("e4m3"), 0, 2, got));
  EXPECT_EQ(got[0], 1.0f);
  EXPECT_EQ(got[1], -448.0f);
  EXPECT_EQ(got[2], 0x1p-9f);
  EXPECT_TRUE(std::isnan(got[3]));
  ASSERT_TRUE(checkpoint.read_rows(*checkpoint.find("e5m2"), 0, 1, got));
  EXPECT_EQ(got[0], 1.0f);
  EXPECT_EQ(got[1], -2.0f);
  EXPECT_TRUE(std::isinf(got[2]));
  EXPECT_EQ(got[3], 0x1p-16f);
  ASSERT_TRUE(checkpoint.read_rows(*checkpoint.find("scalar"), 0, 1, got));
  EXPECT_EQ(got[0], 0.0f);
  EXPECT_TRUE(checkpoint.read_rows(*checkpoint.find("empty"), 0, 0, got));
  const Status refused = checkpoint.read_rows(*checkpoint.find("int"), 0, 1, got);
  ASSERT_FALSE(refused);
  EXPECT_TRUE(says(refused.error().message, "tensor 'int' is I32")) << refused.error().message;
}

TEST(HfCheckpoint, Float8ValuesFollowTheirDefinition) {
  for (int bits = 0; bits < 256; ++bits) {
    const double sign = bits & 0x80 ? -1 : 1;
    const auto value = [&](int n_mantissa, int bias) {
      const int exponent = (bits & 0x7f) >> n_mantissa, mantissa = bits & ((1 << n_mantissa) - 1);
      const double fraction = std::ldexp(mantissa, -n_mantissa);
      return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                   : std::ldexp(1 + fraction, exponent - bias));
    };
    const uint8_t code = static_cast<uint8_t>(bits);
    if ((bits & 0x7f) != 0x7f) {
      EXPECT_EQ(f8e4m3_to_float(code), value(3, 7)) << bits;
    }
    if ((bits & 0x7f) < 0x7c) {
      EXPECT_EQ(f8e5m2_to_float(code), value(2, 15)) << bits;
    }
  }
}

TEST(HfCheckpoint, ShardsAreOneSortedCheckpoint) {
  const auto opened = Checkpoint::open(two_shards("shards"));
  ASSERT_TRUE(opened) << opened.error().message;
  ASSERT_EQ((*opened)->tensors().size(), 3u);
  EXPECT_EQ((*opened)->tensors()[2].name, "c");
  float got[2];
  ASSERT_TRUE((*opened)->read_rows(*(*opened)->find("c"), 0, 1, got));
  EXPECT_EQ(got[1], 2);
  (*opened)->release(*(*opened)->find("c"));
}

TEST(HfCheckpoint, RefusesShardsThatDoNotAddUp) {
  std::string path = two_shards("absent_shard");
  fs::remove(path + "/two.safetensors");
  EXPECT_TRUE(says(problem(path), "1 of 2 shards are missing, the first is 'two.safetensors'"));

  path = two_shards("missing_tensor");
  put_tensors(path + "/two.safetensors", {"d"});
  EXPECT_TRUE(says(problem(path), "1 of 3 tensors are not in their shards, the first is 'c'"))
      << problem(path);

  path = two_shards("twice");
  put_tensors(path + "/two.safetensors", {"a", "c"});
  EXPECT_TRUE(says(problem(path), "'a' is in two shards")) << problem(path);

  path = two_shards("wrong_shard");
  put_tensors(path + "/one.safetensors", {"a"});
  put_tensors(path + "/two.safetensors", {"b", "c"});
  EXPECT_TRUE(says(problem(path), "not in their shards")) << problem(path);

  for (const char* index : {"{}", "[]", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
                            R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})"}) {
    put(path + kIndex, index);
    EXPECT_TRUE(says(problem(path), "index.json")) << index;
  }
}

TEST(HfCheckpoint, ShardNamesCannotLeaveTheDirectory) {
  const std::string path = two_shards("escape");
  put_tensors(path + "/../quern_hf_outside.safetensors", {"a"});
  for (const char* name :
       {"../quern_hf_outside.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "", "..",
        "a\\\\b.safetensors", "x\\u0000.safetensors", "c:x.safetensors", "model.bin"}) {
    put(path + kIndex, fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", name));
    EXPECT_TRUE(says(problem(path), "shard '")) << name << ": " << problem(path);
  }
  fs::create_symlink("../quern_hf_outside.safetensors", path + "/link.safetensors");
  put(path + kIndex, R"({"weight_map":{"a":"link.safetensors"}})");
  EXPECT_TRUE(says(problem(path), "leads out of the directory")) << problem(path);
  fs::remove(path + "/../quern_hf_outside.safetensors");
}

TEST(HfCheckpoint, FollowsTheLinksOfACacheSnapshot) {
  const std::string root = folder("cache");
  fs::create_directories(root + "/blobs");
  fs::create_directories(root + "/snapshots/r1");
  const std::string path = root + "/snapshots/r1";
  put_tensors(root + "/blobs/0123", {"a"});
  fs::create_symlink("../../blobs/0123", path + "/one.safetensors");
  put(path + "/config.json", "{}");
  put(path + kIndex, R"({"weight_map":{"a":"one.safetensors"}})");
  EXPECT_EQ(problem(path), "");
}

TEST(HfCheckpoint, AdvisesOnWhatItCannotRead) {
  const std::string path = folder("pickle");
  EXPECT_TRUE(says(problem(path), "no config.json"));
  put(path + "/config.json", "[]");
  EXPECT_TRUE(says(problem(path), "not a JSON object"));
  put(path + "/config.json", "{}");
  EXPECT_TRUE(says(problem(path), "neither model.safetensors nor"));
  put(path + "/pytorch_model.bin", "x");
  EXPECT_TRUE(says(problem(path), "pickle checkpoint can run code")) << problem(path);
  EXPECT_TRUE(says(problem(path + "/pytorch_model.bin"), "convert it to safetensors"));
  EXPECT_TRUE(says(problem(path + "/none"), "no such file"));
  put(path + "/weights.safetensors", "x");
  EXPECT_TRUE(says(problem(path + "/weights.safetensors"), "name the directory"));
  EXPECT_TRUE(says(problem(path + "/config.json"), "gguf: no magic"));
}

}  // namespace
}  // namespace quern
