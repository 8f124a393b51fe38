// SPDX-License-Identifier: Apache-2.0
// How the cache of a layer keeps keys and values; of all layers: kvcache/kv_cache_recipe.h.
//
//   bf16 | f16 | f32 | name of a preset
//   kv(k=CODEC, v=CODEC, window=N, sinks=N, rope=stored|read, rotate=true|false, evict=POLICY)
//   kv(merge=RULE)
//
// Positions are coded in whole pages, once all of a page lie `window` or more before the newest;
// until then they are kept as halves. What a query reads depends on its position alone, so that
// results do not depend on how a text was cut into calls. Where a policy evicts, slots count in
// place of positions. Codecs and policy may be absent.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kvcache/kv_codec.h"
#include "kvcache/kv_merge.h"
#include "kvcache/kv_policy.h"
#include "tensor/dtype.h"

namespace quern {

struct KvRecipe {
  std::string text = "f16";  // canonical
  // Of positions that are not coded: kF16, or where nothing is coded or evicted kBF16 or kF32.
  DType exact = DType::kF16;
  std::shared_ptr<const KvCodec> keys, values;  // both null: nothing is coded
  int64_t window = 0;
  int64_t sinks = 0;            // first positions whose halves stay (kv_sinks.h)
  bool codes_unturned = false;  // keys are coded before RoPE (kv_rope.h)
  bool rotate = false;  // heads of q, k and v by a Hadamard matrix (QuaRot, arXiv 2404.00456)
  std::shared_ptr<const KvPolicy> policy;  // null: everything stays
  std::shared_ptr<const KvMerge> merge;    // null: a token is a slot

  static Result<KvRecipe> parse(std::string_view text);
  static KvRecipe plain(DType exact);

  bool is_coded() const { return keys != nullptr; }
  bool is_plain() const { return !is_coded() && policy == nullptr && merge == nullptr; }
  // Of a number in a coded page of heads of d_head dimensions, side information included; the mean
  // of keys and values. Where pages differ in size: at most.
  double bits(int64_t d_head) const;
  Status check(int64_t d_head) const;
  bool has_tables() const {  // of a model
    return is_coded() &&
           (keys->tables() == KvTables::kOfModel || values->tables() == KvTables::kOfModel);
  }
  bool absorbs() const { return policy != nullptr && policy->absorbs(); }
  // Parameters that stand with the tables of a model.
  bool has_trained() const { return absorbs() || (merge != nullptr && merge->has_tables()); }
  bool has_text_tables() const {
    return is_coded() &&
           (keys->tables() == KvTables::kOfText || values->tables() == KvTables::kOfText);
  }
  // Newest queries by which a codec of pages that differ in size goes; 0: there is none.
  int64_t n_queries() const {
    return is_coded() ? std::max(keys->n_queries(), values->n_queries()) : 0;
  }
  // A query at `position` (which sees itself) reads the positions before this one from codes; a
  // multiple of kKeyBlock. What goes by queries waits for those before the next such multiple.
  int64_t coded_before(int64_t position) const {
    const int64_t end = n_queries() > 0 ? position / kKeyBlock * kKeyBlock : position + 1;
    const int64_t n = end - window;
    return is_coded() && n > 0 ? n / kKeyBlock * kKeyBlock : 0;
  }
};

struct KvPreset {
  std::string_view name, text, summary;
};
std::span<const KvPreset> kv_presets();

}  // namespace quern
