// SPDX-License-Identifier: Apache-2.0
// A cache in a file: safetensors with the metadata
//   format "quern-kv", version "1", model (who made it, in words of the caller), kv (the text of
//   the recipe)
// and, of n positions and H heads of d dimensions,
//   tokens             I32  [n]
//   hidden             F32  [d_model]      what the head reads of the newest position
//   layers.L.keys      F16 or F32 [H, m, d]  the newest m positions as they came: what any query
//   layers.L.values    likewise              from the next position on may read
//   layers.L.pages     U8   [pages, H, bytes of a page of keys and one of values]
//   layers.L.varying   U8   [bytes]        pages that differ in size, which `pages` then lacks
//   layers.L.queries   F32  [rows, width]  the newest, where a codec goes by them
//   layers.L.key_tables, .value_tables  F32 [k]  of codecs that look at the first page
//   layers.L.sinks     F16  [H, 2, sinks, d]  keys and values, where there is a page and sinks
//   layers.L.positions, .scores, .moving, .queries   where a policy evicts (kv_slots.h)
//   layers.L.absorbed, .absorbed_weights             F32 [H, R, d], [H, R] (kv_feature_maps.h)
// or, where heads merge, for each of them
//   layers.L.heads.h.keys, .values, .positions, .open   (KvMergedHead in kv_cache.h)
// with d, m and the number of pages as the recipe and n say. The file depends on what was read, not
// on the calls that read it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "kvcache/kv_cache.h"

namespace quern {

// What stands in a file beside keys and values.
struct KvFileHead {
  std::string model;
  std::vector<int32_t> tokens;
  std::vector<float> hidden;
};

// Appears whole or not at all. head.tokens are as many as the cache is long.
Status save_kv_file(const std::string& path, const KvCache& cache, const KvFileHead& head);

class KvFile {
 public:
  static Result<KvFile> open(const std::string& path);
  // A whole file image, which must outlive the object.
  static Result<KvFile> parse(std::span<const std::byte> image);

  const KvFileHead& head() const { return head_; }
  const std::string& kv() const { return kv_; }  // text of the recipe
  // Fills an empty cache. Fails if it has another recipe, other layers or too little room, and
  // where what is to be read has numbers that are none; the cache may then be partly filled.
  Status load(KvCache& cache) const;

 private:
  Status read_head(const std::map<std::string, std::string>& metadata);
  std::shared_ptr<const MappedFile> file_;  // null for an image
  std::vector<TensorInfo> tensors_;
  KvFileHead head_;
  std::string kv_;
};

}  // namespace quern
