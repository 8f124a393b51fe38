// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/safetensors.h"

namespace quern {
namespace {

constexpr const char *kFormat = "quern-kv-tables", *kVersion = "1";

}  // namespace

std::string KvTableSet::full_name(size_t layer, std::string_view name) {
  return fmt::format("layers.{}.{}", layer, name);
}

std::string KvTableSet::codec_name(KvSide side, const KvCodec& codec) {
  return fmt::format("{}.{}", side == KvSide::kKeys ? "keys" : "values", codec.spec());
}

Status KvTableSet::save(const std::string& path) const {
  std::vector<TensorSpec> specs;
  for (const auto& [name, table] : tables_) {
    specs.push_back({name, DType::kF32, table->shape});
  }
  QUERN_ASSIGN(SafetensorsWriter writer,
               SafetensorsWriter::create(
                   path, specs, {{"format", kFormat}, {"version", kVersion}, {"model", model}}));
  for (const TensorSpec& spec : writer.order()) {
    const std::vector<float>& values = tables_.at(spec.name)->values;
    QUERN_TRY(writer.append(spec.name, values.data(), values.size() * sizeof(float)));
  }
  return writer.finish();
}

Result<KvTableSet> KvTableSet::open(const std::string& path) {
  QUERN_ASSIGN(const auto file, MappedFile::open(path));
  Result<KvTableSet> parsed = parse(file->bytes());
  if (!parsed) return tl::unexpected(in_context(parsed.error(), path));
  return parsed;
}

Result<KvTableSet> KvTableSet::parse(std::span<const std::byte> image) {
  QUERN_ASSIGN(const SafetensorsHeader header, parse_safetensors(image));
  const auto text = [&](const char* key) {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string() : found->second;
  };
  if (text("format") != kFormat || text("version") != kVersion) {
    return error("format '{}', version '{}': expected {} {}", text("format"), text("version"),
                 kFormat, kVersion);
  }
  KvTableSet set;
  set.model = text("model");
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.dtype != DType::kF32) {
      return error("tensor '{}' is {}, expected F32", tensor.name, dtype_name(tensor.dtype));
    }
    std::vector<float> values(tensor.n_bytes / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes, tensor.n_bytes);
    if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); })) {
      return error("tensor '{}' has a number that is none", tensor.name);
    }
    set.tables_[tensor.name] =
        std::make_shared<const KvTable>(KvTable{tensor.shape, std::move(values)});
  }
  return set;
}

Result<std::vector<std::shared_ptr<const KvCodec>>> KvTableSet::codecs(size_t layer,
                                                                       const KvFitRows& shape,
                                                                       const KvCodec& codec) const {
  const std::string key = full_name(layer, codec_name(shape.side, codec));
  const auto found = tables_.find(key);
  if (found == tables_.end()) {
    return usage_error("no '{}' among the tables of caches: quern calibrate-kv makes them", key);
  }
  std::vector<std::shared_ptr<const KvCodec>> codecs;
  for (int64_t head = 0; head < shape.n_heads; ++head) {
    QUERN_ASSIGN(auto of_head, codec.with_tables(shape, head, found->second->values));
    codecs.push_back(std::move(of_head));
  }
  return codecs;
}

Result<std::shared_ptr<const KvTable>> KvTableSet::find(size_t layer, std::string_view name,
                                                        size_t rank) const {
  const auto found = tables_.find(full_name(layer, name));
  if (found == tables_.end()) {
    return usage_error("no '{}' among the tables of caches: training makes it",
                       full_name(layer, name));
  }
  if (found->second->shape.size() != rank) {
    return error("'{}' is {}, expected {} axes", full_name(layer, name),
                 to_string(found->second->shape), rank);
  }
  return found->second;
}

}  // namespace quern
