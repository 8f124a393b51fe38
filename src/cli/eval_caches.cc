// SPDX-License-Identifier: Apache-2.0
#include "cli/eval_caches.h"

#include "cli/command.h"

namespace quern::cli {
namespace {

struct Row {
  std::string cache, recipe;
  double bits = 0, held_bits = 0;  // of a number in pages; of all that the context holds
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
                 row.bits, row.held_bits, r.ppl, r.ppl_stderr, r.kl_mean, r.kl_stderr, r.kl_p99,
                 r.top1);
    } else if (table == CacheTable::kText) {
      fmt::print("{:7.3f} {:7.3f} {:9.4f} {:9.5f} {:9.4f} {:6.2f} %  {}\n", row.bits, row.held_bits,
                 r.ppl, r.kl_mean, r.kl_p99, 100 * r.top1, row.cache);
    }
    list.push_back(to_json(r));
    list.back()["kv"] = row.cache;
    list.back()["kv_recipe"] = row.recipe;
    list.back()["kv_bits"] = row.bits;
    list.back()["kv_held_bits"] = row.held_bits;
  }
  if (table == CacheTable::kJson) fmt::print("{}\n", list.dump(1));
}

}  // namespace

Status eval_caches(const Model& model, const std::vector<Token>& text,
                   const std::vector<NamedCache>& caches, const EvalOptions& options,
                   CacheTable table) {
  ProgressBar bar(table != CacheTable::kText);
  std::vector<Row> rows;
  for (const NamedCache& cache : caches) {
    EvalOptions one = options;
    one.kv = cache.recipe;
    one.proceed = [&](double done) {
      const auto before = static_cast<double>(rows.size());
      bar.show((before + done) / static_cast<double>(caches.size()), cache.name);
      return !interrupted();
    };
    QUERN_ASSIGN(EvalResult result, evaluate(model, &model, text, one));
    rows.push_back({cache.name, cache.recipe.text, cache.recipe.bits(model.desc()),
                    cache.recipe.held_bits(model.desc(), options.n_ctx), std::move(result)});
  }
  bar.clear();
  print_rows(rows, table);
  return {};
}

}  // namespace quern::cli
