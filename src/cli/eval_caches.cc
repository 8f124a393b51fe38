// SPDX-License-Identifier: Apache-2.0
#include "cli/eval_caches.h"

#include "cli/command.h"
#include "report/comparison.h"

namespace quern::cli {
namespace {

struct Row {
  std::string cache, recipe;
  CacheBits bits;
  EvalResult result;
};

void print_rows(const std::vector<Row>& rows, CacheTable table) {
  Json list = Json::array();
  if (table == CacheTable::kCsv) {
    fmt::print("cache,bits,held_bits,ppl,stderr,kl_mean,kl_stderr,kl_p99,top1\n");
  } else if (table == CacheTable::kText) {
    fmt::print("{:>7} {:>7} {:>9} {:>9} {:>9} {:>8}  {}\n", "bits", "held", "ppl", "KL", "KL 99 %",
               "top-1", "cache");
  }
  for (const Row& row : rows) {
    const EvalResult& r = row.result;
    if (table == CacheTable::kCsv) {
      fmt::print("\"{}\",{:.4f},{:.4f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f}\n", row.cache,
                 row.bits.page, row.bits.held, r.ppl, r.ppl_stderr, r.kl_mean, r.kl_stderr,
                 r.kl_p99, r.top1);
    } else if (table == CacheTable::kText) {
      fmt::print("{:7.3f} {:7.3f} {:9.4f} {:9.5f} {:9.4f} {:6.2f} %  {}\n", row.bits.page,
                 row.bits.held, r.ppl, r.kl_mean, r.kl_p99, 100 * r.top1, row.cache);
    }
    list.push_back(to_json(r));
    list.back()["kv"] = row.cache;
    list.back()["kv_recipe"] = row.recipe;
    list.back()["kv_bits"] = row.bits.page;
    list.back()["kv_held_bits"] = row.bits.held;
  }
  if (table == CacheTable::kJson) fmt::print("{}\n", list.dump(1));
}

}  // namespace

CacheBits cache_bits(const ModelDesc& model, const KvCacheRecipe& kv, int64_t n,
                     const CacheBits& measured) {
  CacheBits bits{kv.bits(model), 0};
  double numbers = 0;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const AttentionDesc& a = model.layers[i].attention;
    const auto kept = kv.of(i);
    if (kept->n_queries() > 0) return measured;
    if (kept->policy != nullptr || kept->merge != nullptr) return {bits.page, measured.held};
    const auto of_layer = static_cast<double>(a.n_kv_heads * a.d_head);
    const auto coded = static_cast<double>(kept->coded_before(n - 1));
    const double exact =
        static_cast<double>(n) - coded + static_cast<double>(coded > 0 ? kept->sinks : 0);
    bits.held += of_layer * (kept->bits(a.d_head) * coded + dtype_bits(kept->exact) * exact);
    numbers += of_layer * static_cast<double>(n);
  }
  bits.held /= numbers;
  return bits;
}

Status eval_caches(const Model& model, const std::vector<Token>& text,
                   const std::vector<NamedCache>& caches, const EvalOptions& options,
                   CacheTable table) {
  ProgressBar bar(table != CacheTable::kText);
  EvalOptions all = options;
  all.proceed = [&](double done) {
    bar.show(done, "caches");
    return !interrupted();
  };
  std::vector<KvCacheRecipe> recipes;
  for (const NamedCache& cache : caches) recipes.push_back(cache.recipe);
  QUERN_ASSIGN(const std::vector<EvalResult> results, evaluate_caches(model, recipes, text, all));
  std::vector<Row> rows;
  for (size_t i = 0; i < caches.size(); ++i) {
    const CacheBits bits = cache_bits(model.desc(), recipes[i], options.n_ctx,
                                      {results[i].kv_bits, results[i].kv_held_bits});
    rows.push_back({caches[i].name, recipes[i].text, bits, results[i]});
  }
  bar.clear();
  print_rows(rows, table);
  return {};
}

}  // namespace quern::cli
