// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_tables.h"

#include <cstring>

#include "formats/safetensors.h"

namespace quern {
namespace {

constexpr const char *kFormat = "quern-kv-tables", *kVersion = "1";

}  // namespace

std::string KvTableSet::name(size_t layer, KvSide side, const KvCodec& codec) {
  const char* what = side == KvSide::kKeys ? "keys" : "values";
  return fmt::format("layers.{}.{}.{}", layer, what, codec.spec());
}

Status KvTableSet::save(const std::string& path) const {
  std::vector<TensorSpec> specs;
  for (const auto& [name, table] : tables_) {
    specs.push_back({name, DType::kF32, {static_cast<int64_t>(table.size())}});
  }
  QUERN_ASSIGN(SafetensorsWriter writer,
               SafetensorsWriter::create(
                   path, specs, {{"format", kFormat}, {"version", kVersion}, {"model", model}}));
  for (const TensorSpec& spec : writer.order()) {
    const std::vector<float>& table = tables_.at(spec.name);
    QUERN_TRY(writer.append(spec.name, table.data(), table.size() * sizeof(float)));
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
    if (tensor.dtype != DType::kF32 || tensor.shape.size() != 1) {
      return error("tensor '{}' is {} {}, expected a vector of F32", tensor.name,
                   dtype_name(tensor.dtype), to_string(tensor.shape));
    }
    std::vector<float>& table = set.tables_[tensor.name];
    table.resize(tensor.n_bytes / sizeof(float));
    if (!table.empty()) std::memcpy(table.data(), tensor.bytes, tensor.n_bytes);
  }
  return set;
}

Result<std::vector<std::shared_ptr<const KvCodec>>> KvTableSet::codecs(size_t layer,
                                                                       const KvFitRows& shape,
                                                                       const KvCodec& codec) const {
  const std::string key = name(layer, shape.side, codec);
  const auto found = tables_.find(key);
  if (found == tables_.end()) {
    return usage_error("no '{}' among the tables of caches: quern calibrate-kv makes them", key);
  }
  std::vector<std::shared_ptr<const KvCodec>> codecs;
  for (int64_t head = 0; head < shape.n_heads; ++head) {
    QUERN_ASSIGN(auto of_head, codec.with_tables(shape, head, found->second));
    codecs.push_back(std::move(of_head));
  }
  return codecs;
}

}  // namespace quern
