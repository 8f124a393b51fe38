// SPDX-License-Identifier: Apache-2.0
// One model with several caches, each beside the plain one.
#pragma once

#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace quern::cli {

// Prints what each cache costs: as lines of CSV, as JSON, or as a table.
enum class CacheTable : uint8_t { kText, kCsv, kJson };
// Bits of a number, of a page and of all that a context of n positions holds: as the recipe says,
// or where pages differ in size as they were when the result was measured.
struct CacheBits {
  double page = 0, held = 0;
};
CacheBits cache_bits(const ModelDesc& model, const KvCacheRecipe& kv, int64_t n,
                     const EvalResult& result);

struct NamedCache {
  std::string name;
  KvCacheRecipe recipe;
};
Status eval_caches(const Model& model, const std::vector<Token>& text,
                   const std::vector<NamedCache>& caches, const EvalOptions& options,
                   CacheTable table);

}  // namespace quern::cli
