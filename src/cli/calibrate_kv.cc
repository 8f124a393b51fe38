// SPDX-License-Identifier: Apache-2.0
// quern calibrate-kv: tables of caches that are fitted to a model, where the other commands look
// for them.
#include <map>
#include <memory>
#include <optional>

#include "calib/gradients.h"
#include "calib/kv_fit.h"
#include "cli/command.h"
#include "cli/compress_options.h"
#include "model/model.h"

namespace quern::cli {
namespace {

struct CalibrateOptions {
  CompressOptions corpus;
  std::string caches = "kvquant-4bit; kvquant-3bit; kvquant-2bit";
  std::optional<KvWeighing> weighing;
  bool json = false;
};

const std::map<std::string, KvWeighing> kWeighings = {{"gradients", KvWeighing::kGradients},
                                                      {"queries", KvWeighing::kQueries}};

// Gradients, unless others are asked for or the model has none.
Result<KvWeighing> choose_weighing(const CalibrateOptions& o, const ModelFiles& files,
                                   ProgressBar& bar) {
  if (o.weighing == KvWeighing::kQueries) return KvWeighing::kQueries;
  const Status has_gradients = check_differentiable(files);
  if (has_gradients) return KvWeighing::kGradients;
  if (o.weighing) return usage_error("--weigh gradients: {}", has_gradients.error().message);
  bar.note(fmt::format("weighed by queries: {}", has_gradients.error().message));
  return KvWeighing::kQueries;
}

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
  QUERN_ASSIGN(const auto files, ModelFiles::open(options.model));
  KvFitOptions fit;
  QUERN_ASSIGN(fit.weighing, choose_weighing(o, *files, bar));
  QUERN_ASSIGN(Corpus corpus, gather_corpus(options));
  if (fit.weighing == KvWeighing::kGradients) corpus = gradient_part(files->desc(), corpus);
  fit.seed = options.seed;
  fit.proceed = [&](double done) {
    bar.show(done, "calibrate");
    return !interrupted();
  };
  QUERN_ASSIGN(KvTableSet tables, fit_kv_tables(*files, corpus, recipes, fit));
  bar.clear();
  const std::string path = kv_tables_path(options.model);
  // Tables of other caches stay, trained ones too, unless they are of another model.
  auto old = KvTableSet::open(path);
  if (old && old->model == tables.model) tables.take_missing(*std::move(old));
  QUERN_TRY(tables.save(path));
  const char* by = fit.weighing == KvWeighing::kGradients ? "gradients" : "queries";
  if (o.json) {
    const Json made = {{"out", valid_utf8(path)},
                       {"caches", recipes.size()},
                       {"tokens", corpus.n_tokens()},
                       {"weighed_by", by}};
    fmt::print("{}\n", made.dump());
    return {};
  }
  fmt::print("{}: tables of {} caches from {} tokens, weighed by {}\n", path, recipes.size(),
             corpus.n_tokens(), by);
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
  app.add_option("--weigh", o->weighing,
                 "by what errors count: squared gradients of the loss, or what queries have in a "
                 "channel; default: gradients, where the model has them")
      ->transform(CLI::CheckedTransformer(kWeighings).description("gradients|queries"));
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Example:\n  quern calibrate-kv models/tiny --calibration text.txt\n"
      "  quern run models/tiny -p 'Once upon a time' --kv kvquant-3bit");
  return [o] { return calibrate(*o); };
}

}  // namespace quern::cli
