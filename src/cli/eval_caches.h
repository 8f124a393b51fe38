// SPDX-License-Identifier: Apache-2.0
// One model with several caches, each beside the plain one.
#pragma once

#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace quern::cli {

// Prints what each cache costs: as lines of CSV, as JSON, or as a table.
enum class CacheTable : uint8_t { kText, kCsv, kJson };
struct NamedCache {
  std::string name;
  KvCacheRecipe recipe;
};
Status eval_caches(const Model& model, const std::vector<Token>& text,
                   const std::vector<NamedCache>& caches, const EvalOptions& options,
                   CacheTable table);

}  // namespace quern::cli
