// SPDX-License-Identifier: Apache-2.0
// What caches need of a model beside their text, in a file: safetensors with the metadata
//   format "quern-kv-tables", version "1", model (digest of the model's files)
// and per layer L, of codecs that are fitted to it, by their canonical text,
//   layers.L.keys.CODEC     F32 [n]   of keys before RoPE
//   layers.L.values.CODEC   F32 [n]
// and trained parameters, layers.L.NAME, F32 in the shapes that those say who read them
// (kv_feature_maps.h, kv_dmc.cc).
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kvcache/kv_codec.h"
#include "tensor/shape.h"

namespace quern {

// Heads of one layer: n_heads of queries, of which n_heads / n_kv_heads share one of keys and
// values.
struct KvHeads {
  int64_t n_heads = 0, n_kv_heads = 0, d_head = 0;
};

// Numbers that are such, as many as the shape says.
struct KvTable {
  Shape shape;
  std::vector<float> values;
};

class KvTableSet {
 public:
  static Result<KvTableSet> open(const std::string& path);
  static Result<KvTableSet> parse(std::span<const std::byte> image);
  // Appears whole or not at all.
  Status save(const std::string& path) const;

  std::string model;  // digest
  void put(size_t layer, KvSide side, const KvCodec& codec, std::vector<float> tables) {
    Shape shape = {static_cast<int64_t>(tables.size())};
    put(layer, codec_name(side, codec), std::move(shape), std::move(tables));
  }
  void put(size_t layer, std::string_view name, Shape shape, std::vector<float> values) {
    tables_[full_name(layer, name)] =
        std::make_shared<const KvTable>(KvTable{std::move(shape), std::move(values)});
  }
  // Takes of another set what it has no table of the same name for.
  void take_missing(KvTableSet other) { tables_.merge(other.tables_); }
  // Codecs of all heads of a layer.
  Result<std::vector<std::shared_ptr<const KvCodec>>> codecs(size_t layer, const KvFitRows& shape,
                                                             const KvCodec& codec) const;
  // A trained parameter; fails if it is not there, or of another rank.
  Result<std::shared_ptr<const KvTable>> find(size_t layer, std::string_view name,
                                              size_t rank) const;

 private:
  static std::string full_name(size_t layer, std::string_view name);
  static std::string codec_name(KvSide side, const KvCodec& codec);
  std::map<std::string, std::shared_ptr<const KvTable>> tables_;
};

}  // namespace quern
