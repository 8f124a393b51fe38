// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/checked.h"
#include "base/float_types.h"
#include "kvcache/kv_layer_state.h"

namespace quern {
namespace {

constexpr const char *kFormat = "quern-kv", *kVersion = "1";
constexpr int64_t kMostHidden = int64_t{1} << 20;  // no model is as wide

std::string layer_name(size_t layer, std::string_view what) {
  return fmt::format("layers.{}.{}", layer, what);
}

template <class T>
std::vector<T> values_of(const TensorInfo& tensor) {
  std::vector<T> values(tensor.n_bytes / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.bytes, values.size() * sizeof(T));
  return values;
}

// A vector of `dtype` and at least one entry.
Result<const TensorInfo*> vector_at(const std::vector<TensorInfo>& tensors, std::string_view name,
                                    DType dtype) {
  const TensorInfo* tensor = find_tensor(tensors, name);
  if (tensor == nullptr) return error("no tensor '{}'", name);
  if (tensor->dtype != dtype || tensor->shape.size() != 1 || tensor->shape[0] < 1) {
    return error("tensor '{}' is {} {}, expected a vector of {}", name, dtype_name(tensor->dtype),
                 to_string(tensor->shape), dtype_name(dtype));
  }
  return tensor;
}

}  // namespace

Status save_kv_file(const std::string& path, const KvCache& cache, const KvFileHead& head) {
  QUERN_CHECK(static_cast<int64_t>(head.tokens.size()) == cache.length() && !head.tokens.empty());
  std::vector<KvStateTensor> tensors;
  tensors.push_back(KvStateTensor::of("tokens", DType::kI32, head.tokens));
  tensors.push_back(KvStateTensor::of("hidden", DType::kF32, head.hidden));
  for (size_t i = 0; i < cache.n_layers(); ++i) {
    for (KvStateTensor& tensor : cache.layer(i).state()) {
      tensor.name = layer_name(i, tensor.name);
      tensors.push_back(std::move(tensor));
    }
  }
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const KvStateTensor& tensor : tensors) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  QUERN_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs,
                                                                   {{"format", kFormat},
                                                                    {"version", kVersion},
                                                                    {"model", head.model},
                                                                    {"kv", cache.recipe().text}}));
  for (const TensorSpec& spec : writer.order()) {
    const auto found = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const KvStateTensor& t) { return t.name == spec.name; });
    QUERN_TRY(writer.append(spec.name, found->bytes.data(), found->bytes.size()));
  }
  return writer.finish();
}

Result<KvFile> KvFile::open(const std::string& path) {
  QUERN_ASSIGN(auto file, MappedFile::open(path));
  Result<KvFile> parsed = parse(file->bytes());
  if (!parsed) return tl::unexpected(in_context(parsed.error(), path));
  parsed->file_ = std::move(file);
  return parsed;
}

Result<KvFile> KvFile::parse(std::span<const std::byte> image) {
  QUERN_ASSIGN(SafetensorsHeader header, parse_safetensors(image));
  KvFile file;
  file.tensors_ = std::move(header.tensors);
  QUERN_TRY(file.read_head(header.metadata));
  return file;
}

Status KvFile::read_head(const std::map<std::string, std::string>& metadata) {
  const auto text = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (text("format") != kFormat) return error("no saved cache: its format is not {}", kFormat);
  if (text("version") != kVersion) {
    return error("version '{}' of saved caches, expected {}", text("version"), kVersion);
  }
  head_.model = text("model");
  kv_ = text("kv");
  QUERN_ASSIGN(const TensorInfo* tokens, vector_at(tensors_, "tokens", DType::kI32));
  QUERN_ASSIGN(const TensorInfo* hidden, vector_at(tensors_, "hidden", DType::kF32));
  if (hidden->shape[0] > kMostHidden) return error("hidden has {} values", hidden->shape[0]);
  head_.tokens = values_of<int32_t>(*tokens);
  head_.hidden = values_of<float>(*hidden);
  for (const float value : head_.hidden) {
    if (!std::isfinite(value)) return error("hidden has a number that is none");
  }
  return {};
}

Status KvFile::load(KvCache& cache) const {
  QUERN_CHECK(cache.length() == 0);
  const auto length = static_cast<int64_t>(head_.tokens.size());
  if (kv_ != cache.recipe().text) {
    return error("the saved cache is {}, expected {}", kv_, cache.recipe().text);
  }
  if (length > cache.capacity()) {
    return error("the saved cache has {} tokens, room for {}", length, cache.capacity());
  }
  size_t n_used = 2;
  for (size_t i = 0; i < cache.n_layers(); ++i) {
    const auto find = [&](std::string_view name) {
      const TensorInfo* tensor = find_tensor(tensors_, layer_name(i, name));
      if (tensor != nullptr) ++n_used;
      return tensor;
    };
    const Status loaded = cache.layer(i).restore(length, find);
    if (!loaded) return tl::unexpected(in_context(loaded.error(), fmt::format("layer {}", i)));
  }
  if (n_used != tensors_.size()) {
    return error("{} tensors in the saved cache, {} of them known", tensors_.size(), n_used);
  }
  cache.advance(length);
  return {};
}

}  // namespace quern
