// SPDX-License-Identifier: Apache-2.0
// Against files of the `gguf` package: see scripts/make_gguf_fixtures.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/file.h"
#include "formats/checkpoint_readers.h"
#include "formats/ggml_blocks.h"
#include "formats/gguf.h"
#include "formats/json.h"

using namespace std::string_literals;

namespace quern {
namespace {

std::string data_file(std::string_view name) {
  return fmt::format("{}/tests/data/gguf/{}", QUERN_SOURCE_DIR, name);
}

uint32_t crc32(std::string_view text) {
  uint32_t crc = ~0u;
  for (const char c : text) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
  }
  return ~crc;
}

// Entry i of a fixture's tensor.
float fixture_value(uint32_t name_crc, int64_t i) {
  const uint32_t mixed = name_crc + 2654435761u * static_cast<uint32_t>(i);
  return static_cast<float>(static_cast<int>(mixed / 256 % 255) - 127) / 128;
}

class GgufModel : public ::testing::TestWithParam<std::array<std::string, 2>> {};

TEST_P(GgufModel, ConfigAndValuesAreThoseOfTheHuggingFaceModel) {
  const auto& [stem, file] = GetParam();
  const auto expected = read_json_file(data_file(stem + ".json"));
  ASSERT_TRUE(expected) << expected.error().message;
  const auto opened = Checkpoint::open(data_file(file));
  ASSERT_TRUE(opened) << opened.error().message;
  const Checkpoint& checkpoint = **opened;
  for (const auto& [key, value] : (*expected)["config"].items()) {
    EXPECT_EQ(checkpoint.config().value(key, Json("absent")), value) << key;
  }
  const Json& tensors = (*expected)["tensors"];
  EXPECT_EQ(checkpoint.tensors().size(), tensors.size());
  for (const auto& [name, shape] : tensors.items()) {
    const TensorInfo* tensor = checkpoint.find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(tensor->shape, shape.get<Shape>()) << name;
    const int64_t rows = matrix_rows(*tensor), cols = matrix_cols(*tensor);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    // In pieces of five rows, which no block size divides.
    for (int64_t row = 0; row < rows; row += 5) {
      const Status read =
          checkpoint.read_rows(*tensor, row, std::min<int64_t>(5, rows - row), &values[row * cols]);
      ASSERT_TRUE(read) << read.error().message;
    }
    const uint32_t crc = crc32(name);
    for (int64_t i = 0; i < rows * cols; ++i) {
      ASSERT_EQ(values[i], fixture_value(crc, i)) << name << " entry " << i;
    }
    EXPECT_FALSE(checkpoint.read_rows(*tensor, rows, 1, values.data()));
    checkpoint.release(*tensor);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufModel,
    ::testing::Values(std::array<std::string, 2>{"llama", "llama.gguf"},
                      std::array<std::string, 2>{"llama3", "llama3.gguf"},
                      std::array<std::string, 2>{"llama-factors", "llama-factors.gguf"},
                      std::array<std::string, 2>{"mistral", "mistral.gguf"},
                      std::array<std::string, 2>{"mixtral", "mixtral.gguf"},
                      std::array<std::string, 2>{"qwen2", "qwen2-00001-of-00003.gguf"},
                      std::array<std::string, 2>{"qwen3", "qwen3.gguf"},
                      std::array<std::string, 2>{"qwen3moe", "qwen3moe.gguf"},
                      std::array<std::string, 2>{"gemma2", "gemma2.gguf"},
                      std::array<std::string, 2>{"phi3", "phi3.gguf"},
                      std::array<std::string, 2>{"gpt2", "gpt2.gguf"}),
    [](const auto& info) {
      std::string name = info.param[0];
      std::erase(name, '-');
      return name;
    });

TEST(GgufBlocks, ValuesEqualTheIndependentDecoderBitForBit) {
  const auto file = GgufFile::open(data_file("blocks.gguf"));
  ASSERT_TRUE(file) << file.error().message;
  int n_types = 0;
  for (const TensorInfo& codes : (*file)->tensors()) {
    const size_t suffix = codes.name.find(".codes");
    if (suffix == std::string::npos) continue;
    const TensorInfo* expected = &*std::find_if(
        (*file)->tensors().begin(), (*file)->tensors().end(),
        [&](const auto& t) { return t.name == codes.name.substr(0, suffix) + ".values"; });
    ASSERT_EQ(codes.shape, expected->shape);
    const size_t n = static_cast<size_t>(*element_count(codes.shape));
    std::vector<float> got(n), want(n);
    ASSERT_TRUE(read_ggml_rows(codes, 0, codes.shape[0], got.data())) << codes.name;
    ASSERT_TRUE(read_ggml_rows(*expected, 0, codes.shape[0], want.data()));
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(got[i], want[i]) << codes.name << " " << i;

    // The last row alone, and a stretch of columns across a block's edge.
    const int64_t rows = codes.shape[0], cols = codes.shape[1];
    ASSERT_TRUE(read_ggml_rows(codes, rows - 1, 1, got.data()));
    for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(got[j], want[(rows - 1) * cols + j]);
    const int64_t first = cols / 2 - 1;
    ASSERT_TRUE(read_ggml_cols(codes, first, 2, got.data()));
    for (int64_t i = 0; i < rows; ++i) {
      ASSERT_EQ(got[i], want[i * cols + first]) << codes.name;
      ASSERT_EQ(got[rows + i], want[i * cols + first + 1]) << codes.name;
    }
    ++n_types;
  }
  EXPECT_EQ(n_types, 17);
}

TEST(GgufBlocks, UnknownAndUndecodedTypesAreRefused) {
  for (const uint32_t id : {4u, 5u, 31u, 33u, 36u, 43u, 97u, 138u, 0xffffffffu}) {
    EXPECT_EQ(find_ggml_type(id), nullptr) << id;
  }
  TensorInfo tensor{.name = "x", .dtype = DType::kU8, .shape = {256}, .block_type = 16};
  float value;
  const Status refused = read_ggml_rows(tensor, 0, 1, &value);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("'x' is IQ2_XXS, which is not decoded"),
            std::string::npos);
  tensor.block_type = 97;
  EXPECT_FALSE(read_ggml_rows(tensor, 0, 1, &value));
  tensor.block_type = 0;
  EXPECT_FALSE(read_ggml_rows(tensor, 0, 1, &value)) << "plain bytes are no weights";
}

// ---- files that are not a model quern knows

std::string problem(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  return checkpoint ? "" : checkpoint.error().message;
}

// A fixture with one stretch of bytes replaced by another of equal length.
std::string altered(const char* fixture, std::string_view from, std::string_view to) {
  std::string bytes = *read_file(data_file(fixture));
  const size_t at = bytes.find(from);
  if (at == std::string::npos || from.size() != to.size()) return "bad replacement";
  bytes.replace(at, from.size(), to);
  const auto read = read_gguf_checkpoint(std::as_bytes(std::span(bytes)));
  return read ? "" : read.error().message;
}

bool says(const std::string& message, std::string_view part) {
  return message.find(part) != std::string::npos;
}

TEST(GgufCheckpoint, DeclinesWhatItDoesNotKnow) {
  EXPECT_EQ(altered("llama.gguf", "llama", "llama"), "");
  EXPECT_EQ(altered("llama.gguf", "llama", "mamba"),
            "architecture 'mamba' is not known, expected one of llama, qwen2, qwen3, qwen3moe, "
            "gemma2, phi3, gpt2");
  EXPECT_TRUE(says(altered("llama.gguf", "\x05\0\0\0\0\0\0\0model"s, "\x05\0\0\0\0\0\0\0mmprj"s),
                   "general.type is 'mmprj'"));
  EXPECT_TRUE(says(altered("llama.gguf", "blk.1.attn_v.weight", "blk.1.attn_w.weight"),
                   "'blk.1.attn_w.weight' has no place in architecture 'llama' of 2 layers"));
  EXPECT_TRUE(
      says(altered("llama.gguf", "blk.1.attn_v.weight", "blk.2.attn_v.weight"), "no place"));
  EXPECT_TRUE(
      says(altered("llama.gguf", "blk.1.attn_v.weight", "blk.01.attn_v.weigh"), "no place"));
  EXPECT_TRUE(says(altered("llama.gguf", "token_embd", "token_embe"), "no tensor 'token_embd"));
  EXPECT_TRUE(says(altered("llama.gguf", "llama.block_count", "llama.block_cound"),
                   "'llama.block_count' is missing"));
  EXPECT_TRUE(says(problem(data_file("blocks.gguf")), "architecture 'blocks' is not known"));
}

TEST(GgufCheckpoint, SplitsAreReadFromTheFirst) {
  EXPECT_TRUE(says(problem(data_file("qwen2-00002-of-00003.gguf")), "split"));
  const std::string folder = ::testing::TempDir() + "quern_gguf_splits";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto copy = [&](const char* from, const char* to) {
    std::filesystem::copy_file(data_file(from), folder + to,
                               std::filesystem::copy_options::overwrite_existing);
  };
  copy("qwen2-00001-of-00003.gguf", "/x-00001-of-00003.gguf");
  EXPECT_TRUE(says(problem(folder + "/x-00001-of-00003.gguf"), "x-00002-of-00003.gguf"));
  copy("qwen2-00003-of-00003.gguf", "/x-00002-of-00003.gguf");
  EXPECT_TRUE(says(problem(folder + "/x-00001-of-00003.gguf"), "says split 3 of 3, expected 2"));
  copy("qwen2-00001-of-00003.gguf", "/y.gguf");
  EXPECT_TRUE(says(problem(folder + "/y.gguf"), "name the first file"));
}

}  // namespace
}  // namespace quern
