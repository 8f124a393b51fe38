// SPDX-License-Identifier: Apache-2.0
// Tables of cache codecs that are fitted to a model, in a file: safetensors with the metadata
//   format "quern-kv-tables", version "1", model (digest of the model's files)
// and per layer L and codec, in canonical text,
//   layers.L.keys.CODEC     F32 [n]   of keys before RoPE
//   layers.L.values.CODEC   F32 [n]
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "kvcache/kv_codec.h"

namespace quern {

class KvTableSet {
 public:
  static Result<KvTableSet> open(const std::string& path);
  static Result<KvTableSet> parse(std::span<const std::byte> image);
  // Appears whole or not at all.
  Status save(const std::string& path) const;

  std::string model;  // digest
  void put(size_t layer, KvSide side, const KvCodec& codec, std::vector<float> tables) {
    tables_[name(layer, side, codec)] = std::move(tables);
  }
  // Codecs of all heads of a layer.
  Result<std::vector<std::shared_ptr<const KvCodec>>> codecs(size_t layer, const KvFitRows& shape,
                                                             const KvCodec& codec) const;

 private:
  static std::string name(size_t layer, KvSide side, const KvCodec& codec);
  std::map<std::string, std::vector<float>> tables_;
};

}  // namespace quern
