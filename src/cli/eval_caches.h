// SPDX-License-Identifier: Apache-2.0
// One model with several caches, each beside the plain one.
#pragma once

#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace quern::cli {

// Prints what each cache costs: as lines of CSV, as JSON, or as a table.
enum class CacheTable : uint8_t { kText, kCsv, kJson };
// Bits of a number, in a page and in the mean over all of a context of n positions: as the recipe
// says, or as `measured` where it does not, since pages differ in size or positions are dropped.
struct CacheBits {
  double page = 0, held = 0;
};
CacheBits cache_bits(const ModelDesc& model, const KvCacheRecipe& kv, int64_t n,
                     const CacheBits& measured);

struct NamedCache {
  std::string name;
  KvCacheRecipe recipe;
};
Status eval_caches(const Model& model, const std::vector<Token>& text,
                   const std::vector<NamedCache>& caches, const EvalOptions& options,
                   CacheTable table);

}  // namespace quern::cli
