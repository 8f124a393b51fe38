// SPDX-License-Identifier: Apache-2.0
// Model folders that somebody damaged or made up: a readable error within a small address space,
// never a crash and never a large allocation.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "formats/json.h"
#include "formats/safetensors.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

namespace fs = std::filesystem;
using test::Ran;
using test::run_quern;
using test::ScratchFolder;

const std::string kLlama = QUERN_SOURCE_DIR "/tests/data/fixtures/llama";
constexpr size_t kRoom = size_t{512} << 20;

class Hostile : public ::testing::Test {
 protected:
  // A fresh copy of a sound model.
  std::string copy(const std::string& from) {
    const std::string path = scratch_ / "model";
    fs::remove_all(path);
    fs::copy(from, path, fs::copy_options::recursive);
    return path;
  }

  const std::string& coded() {
    if (!coded_.empty()) return coded_;
    const std::string path = scratch_ / "coded";
    const Ran ran = run_quern({"compress", kLlama, "-o", path, "--recipe",
                               "rotate(rht) | rtn(int(4, group=16, sym=false)) @ all+embed"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    coded_ = path;
    return coded_;
  }

  void expect_refused(const std::string& path, const std::string& what,
                      const std::string& mentions = "") {
    for (const std::vector<std::string>& args :
         {std::vector<std::string>{"inspect", path},
          std::vector<std::string>{"bench", path, "-p", "4", "-n", "1", "-r", "1"}}) {
      const Ran ran = run_quern(args, {.address_space = kRoom});
      EXPECT_EQ(ran.signal, 0) << what << ": " << ran.err;
      EXPECT_TRUE(ran.code == 1 || ran.code == 2) << what << ": code " << ran.code;
      EXPECT_EQ(ran.out, "") << what;
      EXPECT_EQ(ran.err.rfind("quern: ", 0), 0u) << what << ": " << ran.err;
      EXPECT_NE(ran.err.find(mentions), std::string::npos) << what << ": " << ran.err;
      EXPECT_EQ(ran.err.find("memory"), std::string::npos) << what << ": " << ran.err;
      EXPECT_LT(ran.err.size(), 2000u) << what;
    }
  }

  void with_config(const std::string& from, const std::function<void(Json&)>& edit,
                   const std::string& what, const std::string& mentions = "") {
    const std::string path = copy(from);
    Json config = *read_json_file(path + "/config.json");
    edit(config);
    ASSERT_TRUE(write_file_atomically(path + "/config.json", config.dump()));
    expect_refused(path, what, mentions);
  }

  // Writes the weights again with specs and bytes edited; specs without a name are dropped.
  void with_tensors(const std::string& from,
                    const std::function<void(TensorSpec&, std::string& bytes)>& edit,
                    const std::string& what, const std::string& mentions) {
    const std::string path = copy(from);
    std::vector<TensorSpec> specs;
    std::map<std::string, std::string> bytes;
    {
      const auto file = SafetensorsFile::open(from + "/model.safetensors");
      ASSERT_TRUE(file.has_value());
      for (const TensorInfo& tensor : (*file)->tensors()) {
        TensorSpec spec{tensor.name, tensor.dtype, tensor.shape};
        std::string content(reinterpret_cast<const char*>(tensor.bytes), tensor.n_bytes);
        edit(spec, content);
        if (spec.name.empty()) continue;
        bytes[spec.name] = content;
        specs.push_back(std::move(spec));
      }
    }
    auto writer = SafetensorsWriter::create(path + "/model.safetensors", specs, {});
    ASSERT_TRUE(writer.has_value()) << writer.error().message;
    for (const TensorSpec& spec : writer->order()) {
      const std::string& content = bytes[spec.name];
      ASSERT_TRUE(writer->append(spec.name, content.data(), content.size()));
    }
    ASSERT_TRUE(writer->finish());
    expect_refused(path, what, mentions);
  }

  ScratchFolder scratch_;
  std::string coded_;
};

TEST_F(Hostile, FoldersThatAreNoModel) {
  const std::string empty = scratch_ / "empty";
  fs::create_directories(empty);
  expect_refused(empty, "an empty folder", "config.json");
  std::string path = copy(kLlama);
  fs::remove(path + "/config.json");
  expect_refused(path, "no config", "config.json");
  path = copy(kLlama);
  fs::remove(path + "/model.safetensors");
  expect_refused(path, "no weights", "model.safetensors");
  ASSERT_TRUE(write_file_atomically(path + "/pytorch_model.bin", "x"));
  expect_refused(path, "pickle only", "pickle");
  ASSERT_TRUE(write_file_atomically(scratch_ / "x.gguf", "GGUF"));
  expect_refused(scratch_ / "x.gguf", "a truncated GGUF");
  ASSERT_TRUE(write_file_atomically(scratch_ / "x.txt", "text"));
  expect_refused(scratch_ / "x.txt", "a text");
}

TEST_F(Hostile, DamagedWeightFiles) {
  const std::string content = test::content_of(kLlama + "/model.safetensors");
  std::string huge_header = content;
  const uint64_t length = uint64_t{1} << 62;
  std::memcpy(huge_header.data(), &length, sizeof(length));
  const std::pair<const char*, std::string> damages[] = {
      {"empty", ""},
      {"seven bytes", content.substr(0, 7)},
      {"half a header", content.substr(0, 100)},
      {"truncated data", content.substr(0, content.size() - 1)},
      {"trailing data", content + "x"},
      {"huge header", huge_header},
      {"garbage", std::string(4096, '\x7f')},
  };
  for (const auto& [what, bytes] : damages) {
    const std::string path = copy(kLlama);
    ASSERT_TRUE(write_file_atomically(path + "/model.safetensors", bytes));
    expect_refused(path, what, "model.safetensors");
  }
}

TEST_F(Hostile, ShardsThatLeadElsewhere) {
  for (const char* shard : {"../x", "/etc/passwd", "../model/model.safetensors", "x\\y", ""}) {
    const std::string path = copy(kLlama);
    fs::remove(path + "/model.safetensors");
    const Json index = {{"weight_map", {{"model.embed_tokens.weight", shard}}}};
    ASSERT_TRUE(write_file_atomically(path + "/model.safetensors.index.json", index.dump()));
    expect_refused(path, shard, "shard");
  }
}

TEST_F(Hostile, ConfigsWithImpossibleSizes) {
  for (const char* text : {"", "{", "[]", "7", "{\"a\":1,\"a\":2}", "\xff"}) {
    const std::string path = copy(kLlama);
    ASSERT_TRUE(write_file_atomically(path + "/config.json", text));
    expect_refused(path, text, "config.json");
  }
  for (const char* key : {"num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size",
                          "num_attention_heads", "num_key_value_heads", "head_dim"}) {
    for (const Json& value : {Json(1'000'000'000), Json(int64_t{1} << 62), Json(0), Json(-1),
                              Json(1e300), Json("2"), Json(nullptr), Json::array()}) {
      if (value.is_null() && std::string(key) != "vocab_size") continue;  // some have defaults
      with_config(
          kLlama, [&](Json& config) { config[key] = value; }, key + value.dump());
    }
  }
  with_config(
      kLlama, [](Json& config) { config["architectures"] = {"UnknownForCausalLM"}; }, "unknown",
      "UnknownForCausalLM");
}

TEST_F(Hostile, OtherToolsAndImpossibleCodes) {
  using Edit = std::function<void(Json&)>;
  with_config(
      kLlama,
      [](Json& config) {
        config["quantization_config"] = {{"quant_method", "gptq"}};
      },
      "another tool", "gptq");
  const std::string tensor = "model.layers.0.self_attn.q_proj.weight";
  const auto edit = [&](const char* key, const Json& value) -> Edit {
    return [=](Json& config) { config["quantization_config"]["tensors"][tensor][key] = value; };
  };
  with_config(coded(), edit("codec", "magic(2)"), "unknown codec", "magic");
  with_config(coded(), edit("codec", "int(99)"), "impossible codec", tensor);
  with_config(coded(), edit("codec", "int(4"), "broken codec", tensor);
  with_config(coded(), edit("codec", "int(4, group=0)"), "codec of other planes", "expected");
  with_config(coded(), edit("codec", 7), "codec number", tensor);
  for (const char* axis : {"n_out", "n_in"}) {
    for (const Json& value : {Json(1 << 30), Json(int64_t{1} << 31), Json(int64_t{1} << 62),
                              Json(0), Json(-5), Json(31), Json("32")}) {
      with_config(coded(), edit(axis, value), axis + value.dump(), tensor);
    }
  }
}

TEST_F(Hostile, ImpossibleFieldsOfTheHeader) {
  const std::string tensor = "model.layers.0.self_attn.q_proj.weight";
  const std::pair<const char*, Json> fields[] = {
      {"format_version", 99},
      {"format_version", 0},
      {"recipe", ""},
      {"recipe", 5},
      {"seed", -1},
      {"seed", uint64_t{1} << 63},
      {"tensors", nullptr},
      {"tensors", Json::array()},
      {"tensors", {{tensor, 5}}},
      {"basis", 7},
      {"basis", {{"everywhere", Json::array()}}},
      {"basis", {{"residual", {{{"op", "melt"}}}}}},
      {"basis", {{"residual", {{{"op", "hadamard"}, {"size", 64}, {"k", 1}}}}}},
      {"basis",
       {{"residual",
         {{{"op", "hadamard"}, {"size", 64}, {"k", 1}, {"construction", "sylvester"}}}}}},
      {"basis",
       {{"ffn",
         {{{"op", "signs"}, {"size", 1 << 24}, {"seed", 1}, {"stream", 1}, {"digest", "00"}}}}}},
      {"basis",
       {{"heads",
         {{{"op", "head_axis"},
           {"heads", 65536},
           {"d_head", 65536},
           {"k", 1},
           {"construction", "sylvester"}}}}}},
  };
  for (const auto& [key, value] : fields) {
    with_config(
        coded(), [&](Json& config) { config["quantization_config"][key] = value; },
        key + value.dump());
  }
  // As many operators as a file can name would fill memory before their sizes are compared.
  with_config(
      coded(),
      [](Json& config) {
        Json& list = config["quantization_config"]["basis"]["ffn"];
        for (int i = 0; i < 1000; ++i) {
          list.push_back({{"op", "hadamard"},
                          {"size", 1024},
                          {"k", 1024},
                          {"construction", "double-double-double-double-double-paley1"}});
        }
      },
      "many operators", "operators");
}

TEST_F(Hostile, CodedTensorsThatDoNotFit) {
  const std::string stem = "model.layers.0.self_attn.q_proj.weight";
  for (const char* plane : {".codes", ".scales", ".zeros"}) {
    const std::string name = stem + plane;
    with_tensors(
        coded(),
        [&](TensorSpec& spec, std::string&) {
          if (spec.name == name) spec.name.clear();
        },
        name + " missing", name);
    with_tensors(
        coded(),
        [&](TensorSpec& spec, std::string& bytes) {
          if (spec.name != name) return;
          spec.shape[0] /= 2;
          bytes.resize(bytes.size() / 2);
        },
        name + " of another shape", name);
    with_tensors(
        coded(),
        [&](TensorSpec& spec, std::string&) {
          if (spec.name != name) return;
          spec.dtype = spec.dtype == DType::kU8 ? DType::kI8 : DType::kBF16;
        },
        name + " of another type", name);
  }
  with_tensors(
      coded(),
      [](TensorSpec& spec, std::string&) {
        if (spec.name == "model.norm.weight") spec.name = "model.norm.other";
      },
      "a dense tensor missing", "model.norm.weight");
}

// Every bit pattern of the codes, scales and zeros is a model, if a bad one.
TEST_F(Hostile, AnyCodesAreSafeToRun) {
  const std::string path = copy(coded());
  std::string content = test::content_of(path + "/model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof(header));
  for (size_t i = 8 + header; i < content.size(); ++i) {
    content[i] = static_cast<char>(i * 2654435761u >> 13);
  }
  ASSERT_TRUE(write_file_atomically(path + "/model.safetensors", content));
  const Ran ran = run_quern({"bench", path, "-p", "8", "-n", "2", "-r", "1"});
  EXPECT_EQ(ran.code, 0) << ran.err;
}

}  // namespace
}  // namespace quern
