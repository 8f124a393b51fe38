// SPDX-License-Identifier: Apache-2.0
#include "cli/eval_needles.h"

namespace quern::cli {
namespace {

struct NeedleRow {
  const NamedCache* cache;
  CacheBits bits;
  NeedleResult result;
  Mean recall, log_likelihood, control, control_log, difference;
};

NeedleRow row_of(const Model& model, const NamedCache& cache, const NeedleResult& base,
                 const NeedleOptions& options, NeedleResult result) {
  NeedleRow row{&cache, {}, std::move(result)};
  const NeedleResult& r = row.result;
  row.bits = cache_bits(model.desc(), cache.recipe, options.n_ctx, {r.kv_bits, r.kv_held_bits});
  row.recall = mean_of(r.mean.recall);
  row.log_likelihood = mean_of(r.mean.log_likelihood);
  row.control = mean_of(r.control.recall);
  row.control_log = mean_of(r.control.log_likelihood);
  row.difference = paired_difference(base.mean.recall, r.mean.recall);
  return row;
}

double percent(double share) { return 100 * share; }

void print_text(const std::vector<NeedleRow>& rows) {
  std::string depths;
  for (const double depth : rows[0].result.depths) {
    depths += fmt::format("{:>6}", fmt::format("{:.0f} %", percent(depth)));
  }
  fmt::print("{:>7} {:>7} {}  {:>14} {:>16} {:>8} {:>8} {:>8}  {}\n", "bits", "held", depths,
             "recall, %", "beside plain", "control", "log p", "control", "cache");
  for (const NeedleRow& row : rows) {
    std::string recalls;
    for (const NeedleScores& scores : row.result.at) {
      recalls += fmt::format("{:6.1f}", percent(mean_of(scores.recall).value));
    }
    fmt::print(
        "{:7.3f} {:7.3f} {}  {:6.1f} +- {:<4.1f} {:+9.1f} +- {:<3.1f} {:8.1f} {:8.2f} {:8.2f}  "
        "{}\n",
        row.bits.page, row.bits.held, recalls, percent(row.recall.value),
        percent(row.recall.stderr_of), percent(row.difference.value),
        percent(row.difference.stderr_of), percent(row.control.value), row.log_likelihood.value,
        row.control_log.value, row.cache->name);
  }
}

void print_csv(const std::vector<NeedleRow>& rows, int64_t length) {
  fmt::print(
      "needle_tokens,cache,bits,held_bits,recall,stderr,difference,difference_stderr,control,log_p,"
      "control_log_p");
  for (const double depth : rows[0].result.depths) {
    fmt::print(",recall_{:.0f}", percent(depth));
  }
  fmt::print("\n");
  for (const NeedleRow& row : rows) {
    fmt::print("{},\"{}\",{:.4f},{:.4f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f}", length,
               row.cache->name, row.bits.page, row.bits.held, row.recall.value,
               row.recall.stderr_of, row.difference.value, row.difference.stderr_of,
               row.control.value, row.log_likelihood.value, row.control_log.value);
    for (const NeedleScores& scores : row.result.at) {
      fmt::print(",{:.6f}", mean_of(scores.recall).value);
    }
    fmt::print("\n");
  }
}

void print_json(const std::vector<NeedleRow>& rows, const NeedleOptions& o) {
  Json list = Json::array();
  for (const NeedleRow& row : rows) {
    Json depths = Json::array();
    for (size_t i = 0; i < row.result.at.size(); ++i) {
      const NeedleScores& scores = row.result.at[i];
      depths.push_back({{"depth", row.result.depths[i]},
                        {"recall", mean_of(scores.recall).value},
                        {"log_p", mean_of(scores.log_likelihood).value}});
    }
    list.push_back({{"kv", row.cache->name},
                    {"kv_recipe", row.cache->recipe.text},
                    {"kv_bits", row.bits.page},
                    {"kv_held_bits", row.bits.held},
                    {"recall", row.recall.value},
                    {"recall_stderr", row.recall.stderr_of},
                    {"recall_difference", row.difference.value},
                    {"recall_difference_stderr", row.difference.stderr_of},
                    {"recall_control", row.control.value},
                    {"log_p", row.log_likelihood.value},
                    {"log_p_control", row.control_log.value},
                    {"depths", depths},
                    {"seconds", row.result.seconds}});
  }
  const Json all = {{"needle_tokens", o.length}, {"copies", o.n_copies}, {"ctx", o.n_ctx},
                    {"samples", o.n_samples},    {"seed", o.seed},       {"caches", list}};
  fmt::print("{}\n", all.dump(1));
}

}  // namespace

void add_needles(CLI::App& app, bool& is_asked, NeedleOptions& options) {
  app.add_option_function<int64_t>(
         "--needle",
         [&](const int64_t& length) {
           is_asked = true;
           options.length = length;
         },
         "recall in place of perplexity: of a passage of so many tokens that stands somewhere in "
         "the context the second half is asked for behind the first")
      ->check(CLI::Range(2, 1 << 16));
  app.add_option("--needle-copies", options.n_copies, "times that a needle is said")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  app.add_option("--needle-depths", options.n_depths, "places of a needle, at equal distances")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  app.add_option("--needle-samples", options.n_samples, "needles, each at every depth")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the needles' places in the text");
}

Status eval_needles(const Model& model, const Model& base, const std::vector<Token>& text,
                    const std::vector<NamedCache>& caches, NeedleOptions options,
                    CacheTable table) {
  ProgressBar bar(table != CacheTable::kText);
  QUERN_ASSIGN(const std::vector<NeedleSample> samples,
               needle_samples(model.desc(), text, options));
  size_t n_done = 0;
  std::string what = "plain cache";
  options.proceed = [&](double done) {
    bar.show((static_cast<double>(n_done) + done) / static_cast<double>(caches.size() + 1), what);
    return !interrupted();
  };
  QUERN_ASSIGN(const NeedleResult plain, find_needles(base, {}, samples, options));
  std::vector<NeedleRow> rows;
  for (const NamedCache& cache : caches) {
    n_done = rows.size() + 1;
    what = cache.name;
    NeedleResult result = plain;
    if (&model != &base || cache.recipe.text != KvCacheRecipe().text) {
      QUERN_ASSIGN(result, find_needles(model, cache.recipe, samples, options));
    }
    rows.push_back(row_of(model, cache, plain, options, std::move(result)));
  }
  bar.clear();
  switch (table) {
    case CacheTable::kText:
      print_text(rows);
      break;
    case CacheTable::kCsv:
      print_csv(rows, options.length);
      break;
    case CacheTable::kJson:
      print_json(rows, options);
      break;
  }
  return {};
}

}  // namespace quern::cli
