// SPDX-License-Identifier: Apache-2.0
// The tiny models of tests/data/fixtures, and checkpoints in memory that tests may damage.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/json.h"
#include "model/weights.h"

namespace quern::test {

inline std::string fixture_path(std::string_view name) {
  return std::string(QUERN_SOURCE_DIR "/tests/data/fixtures/") + std::string(name);
}

inline std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(fixture_path(""))) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline Json read_json(const std::string& path) {
  Result<Json> json = read_json_file(path);
  EXPECT_TRUE(json.has_value()) << (json ? "" : json.error().message);
  return json ? *json : Json::object();
}

inline Json fixture_config(std::string_view name) {
  return read_json(fixture_path(name) + "/config.json");
}

// The weights of such a model, and the token ids of its golden file.
struct Fixture {
  WeightStore store;
  std::vector<int32_t> ids;
  const ModelDesc& model() const { return store.model(); }
};

inline Fixture open_fixture(const std::string& name) {
  auto store = WeightStore::open(fixture_path(name));
  EXPECT_TRUE(store.has_value()) << (store ? "" : store.error().message);
  return {*std::move(store), read_json(fixture_path(name) + "/golden.json")["ids"]};
}

// A checkpoint of float32 tensors in memory, first a copy of one on disk.
class MemoryCheckpoint : public Checkpoint {
 public:
  explicit MemoryCheckpoint(const Checkpoint& source) {
    path_ = "memory";
    config_ = source.config();
    for (const TensorInfo& tensor : source.tensors()) {
      std::vector<float> values(static_cast<size_t>(element_count(tensor.shape).value()));
      const int64_t rows = tensor.shape.size() < 2 ? 1 : tensor.shape[0];
      EXPECT_TRUE(source.read_rows(tensor, 0, rows, values.data()).has_value());
      put(tensor.name, tensor.shape, std::move(values));
    }
  }

  void put(const std::string& name, const Shape& shape, std::vector<float> values) {
    values_[name] = std::move(values);
    TensorInfo& tensor = infos_[name];
    tensor = {.name = name, .dtype = DType::kF32, .shape = shape};
    tensor.bytes = reinterpret_cast<const std::byte*>(values_[name].data());
    tensor.n_bytes = values_[name].size() * sizeof(float);
    list();
  }
  void remove(const std::string& name) {
    infos_.erase(name);
    values_.erase(name);
    list();
  }
  void rename(const std::string& from, const std::string& to) {
    const Shape shape = infos_.at(from).shape;
    std::vector<float> values = values_.at(from);
    remove(from);
    put(to, shape, std::move(values));
  }
  TensorInfo& edit(const std::string& name) { return infos_.at(name); }
  Json& edit_config() { return config_; }

  const std::vector<TensorInfo>& tensors() const override { return list_; }
  const TensorInfo* find(std::string_view name) const override {
    const auto found = infos_.find(name);
    return found == infos_.end() ? nullptr : &found->second;
  }
  Status read_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows,
                   float* dst) const override {
    const int64_t cols = tensor.shape.back();
    std::memcpy(dst, tensor.bytes + first_row * cols * int64_t{sizeof(float)},
                static_cast<size_t>(n_rows * cols) * sizeof(float));
    return {};
  }
  void release(const TensorInfo&) const override {}

 private:
  void list() {
    list_.clear();
    for (const auto& [name, info] : infos_) list_.push_back(info);
  }

  std::map<std::string, TensorInfo, std::less<>> infos_;
  std::map<std::string, std::vector<float>> values_;
  std::vector<TensorInfo> list_;
};

inline std::shared_ptr<MemoryCheckpoint> in_memory(std::string_view fixture) {
  auto opened = Checkpoint::open(fixture_path(fixture));
  EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
  return std::make_shared<MemoryCheckpoint>(**opened);
}

}  // namespace quern::test
