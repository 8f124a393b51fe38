// SPDX-License-Identifier: Apache-2.0
// quern calibrate-kv: tables of caches that are fitted to a model, where the other commands look
// for them.
#include <memory>

#include "calib/kv_fit.h"
#include "cli/command.h"
#include "cli/compress_options.h"
#include "model/model.h"

namespace quern::cli {
namespace {

struct CalibrateOptions {
  CompressOptions corpus;
  std::string caches = "kvquant-4bit; kvquant-3bit; kvquant-2bit";
  bool json = false;
};

Status calibrate(const CalibrateOptions& o) {
  std::vector<KvCacheRecipe> recipes;
  for (const std::string& text : split_texts(o.caches)) {
    QUERN_ASSIGN(KvCacheRecipe recipe, KvCacheRecipe::parse(text));
    if (!recipe.has_tables()) return usage_error("{} needs no tables", text);
    recipes.push_back(std::move(recipe));
  }
  if (recipes.empty()) return usage_error("--kv: no cache");
  ProgressBar bar(o.json);
  CompressOptions options = o.corpus;
  options.observe = [&](const Json& event) {
    bar.show(event["part"].get<double>(), "draw calibration text");
    return !interrupted();
  };
  QUERN_ASSIGN(const Corpus corpus, gather_corpus(options));
  QUERN_ASSIGN(const auto files, ModelFiles::open(options.model));
  QUERN_ASSIGN(KvTableSet tables, fit_kv_tables(*files, corpus, recipes, [&](double done) {
                 bar.show(done, "calibrate");
                 return !interrupted();
               }));
  bar.clear();
  const std::string path = kv_tables_path(options.model);
  // Tables of other caches stay, trained ones too, unless they are of another model.
  auto old = KvTableSet::open(path);
  if (old && old->model == tables.model) tables.take_missing(*std::move(old));
  QUERN_TRY(tables.save(path));
  if (o.json) {
    fmt::print(
        "{}\n",
        Json{{"out", valid_utf8(path)}, {"caches", recipes.size()}, {"tokens", corpus.n_tokens()}}
            .dump());
    return {};
  }
  fmt::print("{}: tables of {} caches from {} tokens\n", path, recipes.size(), corpus.n_tokens());
  return {};
}

}  // namespace

Action declare_calibrate_kv(CLI::App& app) {
  const auto o = std::make_shared<CalibrateOptions>();
  o->corpus.corpus.n_samples = 16;
  o->corpus.corpus.length = 2048;
  add_model(app, o->corpus.model);
  app.add_option("--kv", o->caches, "caches to be fitted, separated by semicolons");
  add_calibration(app, o->corpus);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Example:\n  quern calibrate-kv models/tiny --calibration text.txt\n"
      "  quern run models/tiny -p 'Once upon a time' --kv kvquant-3bit");
  return [o] { return calibrate(*o); };
}

}  // namespace quern::cli
