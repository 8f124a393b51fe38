// SPDX-License-Identifier: Apache-2.0
// compare: one model, several recipes, one table. Compressed models are kept under a folder by the
// digest of everything that made them, so a second comparison only measures.
#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/digest.h"
#include "base/file.h"
#include "cli/command.h"
#include "cli/compress_options.h"
#include "eval/speed.h"
#include "model/generate.h"
#include "recipe/presets.h"
#include "recipe/recipe.h"

namespace quern::cli {
namespace {

struct CompareOptions {
  std::string model, recipes, text, work, prompt;
  CompressOptions compress;
  EvalOptions eval;
  SpeedOptions speed;
  Activations activations{};
  bool json = false, csv = false, no_speed = false;
  int64_t n_predict = 48;
};

struct Row {
  std::string recipe, path;
  uint64_t bytes = 0;
  double bpw = 0, linear_bpw = 0;
  double compress_seconds = 0;  // 0: not known
  EvalResult eval;
  SpeedResult speed;
  double decode_weights_per_second = 0;  // 0: nothing coded, or not timed
  bool is_best = false;                  // nothing is both smaller and closer to the original
  std::string sample;
};

std::vector<std::string> split_recipes(const std::string& text) {
  std::vector<std::string> recipes;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(';', at), text.size());
    std::string recipe = text.substr(at, end - at);
    const size_t first = recipe.find_first_not_of(" \t\n");
    if (first != std::string::npos) {
      recipe.erase(recipe.find_last_not_of(" \t\n") + 1);
      recipes.push_back(recipe.substr(first));
    }
    at = end + 1;
  }
  return recipes;
}

std::string default_work_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) return std::string(cache) + "/quern";
  if (const char* home = std::getenv("HOME")) return std::string(home) + "/.cache/quern";
  return ".quern-cache";
}

// Where the result of a recipe is kept: a name made of everything that determines its bytes.
std::string output_folder(const CompareOptions& o, const std::string& canonical) {
  std::error_code ignored;
  const auto source = std::filesystem::weakly_canonical(o.model, ignored).string();
  const std::string weights = source + "/model.safetensors";
  const auto changed = std::filesystem::last_write_time(
      std::filesystem::exists(weights, ignored) ? weights : source, ignored);
  const std::string& text = o.compress.calibration;
  const int64_t text_changed =
      text.empty() ? 0 : std::filesystem::last_write_time(text, ignored).time_since_epoch().count();
  const std::string key =
      fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}", source, changed.time_since_epoch().count(),
                  canonical, o.compress.seed, text, text_changed, o.compress.corpus.n_samples,
                  o.compress.corpus.length, QUERN_VERSION);
  return fmt::format("{}/{}", o.work, digest_of(key));
}

// A compressed model says nothing of the time it took, so that the same recipe gives the same
// bytes; it is kept beside the folder.
std::string seconds_file(const std::string& path) { return path + ".seconds"; }

double read_seconds(const std::string& path) {
  const auto text = read_file(seconds_file(path), 64);
  return text ? std::strtod(text->c_str(), nullptr) : 0;
}

// The rows' models; the first is the original.
using Models = std::vector<const Model*>;

Status measure_quality(const CompareOptions& o, const Models& models, std::span<const Token> ids,
                       ProgressBar& bar, std::vector<Row>& rows) {
  EvalOptions eval = o.eval;
  eval.n_ctx = std::min(eval.n_ctx, models[0]->desc().n_context);
  eval.proceed = [&](double done) {
    bar.show(done, fmt::format("evaluate {} models", models.size()));
    return !interrupted();
  };
  QUERN_ASSIGN(const std::vector<EvalResult> results, evaluate(models, models[0], ids, eval));
  for (size_t i = 0; i < rows.size(); ++i) rows[i].eval = results[i];
  rows[0].eval.has_base = !eval.kv.is_plain();  // else it would be compared with itself
  return {};
}

Status measure_one(const CompareOptions& o, const Model& model, const Tokenizer& tokenizer,
                   Row& row) {
  row.bytes = model.files().weight_bytes();
  row.bpw = model.files().bpw();
  row.linear_bpw = model.files().linear_bpw();
  if (!o.no_speed) {
    SpeedOptions speed = o.speed;
    speed.kv = o.eval.kv;
    speed.n_prompt = std::min(speed.n_prompt, model.desc().n_context - speed.n_generate);
    QUERN_ASSIGN(row.speed, measure_speed(model, speed));
    row.decode_weights_per_second = measure_decoding(model);
  }
  if (o.prompt.empty()) return {};
  std::vector<Token> prompt = tokenizer.tokenize(o.prompt);
  if (model.desc().bos >= 0) prompt.insert(prompt.begin(), model.desc().bos);
  GenerateOptions options;
  options.n_predict = o.n_predict;
  options.kv = o.eval.kv;
  options.sampler.temperature = 0;
  options.on_text = [&](std::string_view piece) {
    row.sample += piece;
    return !interrupted();
  };
  QUERN_TRY(generate(model, tokenizer, prompt, options));
  return {};
}

// By size; a row is best when no smaller one diverges as little.
void rank(std::vector<Row>& rows) {
  std::stable_sort(rows.begin() + 1, rows.end(),
                   [](const Row& a, const Row& b) { return a.bytes > b.bytes; });
  for (Row& row : rows) {
    row.is_best = std::none_of(rows.begin(), rows.end(), [&](const Row& other) {
      const bool no_worse = other.bytes <= row.bytes && other.eval.kl_mean <= row.eval.kl_mean;
      return no_worse && (other.bytes < row.bytes || other.eval.kl_mean < row.eval.kl_mean);
    });
  }
}

Json to_json(const Row& row) {
  Json json = cli::to_json(row.eval);
  json["recipe"] = row.recipe;
  json["bytes"] = row.bytes;
  json["bpw"] = row.bpw;
  json["linear_bpw"] = row.linear_bpw;
  if (row.compress_seconds > 0) json["compress_seconds"] = row.compress_seconds;
  json["prompt_tokens_per_second"] = row.speed.prompt.median();
  json["generated_tokens_per_second"] = row.speed.generated.median();
  json["decode_weights_per_second"] = row.decode_weights_per_second;
  json["pareto"] = row.is_best;
  if (!row.sample.empty()) json["sample"] = row.sample;
  return json;
}

void print_table(const std::vector<Row>& rows, bool with_speed) {
  size_t width = 8;
  for (const Row& row : rows) width = std::max(width, row.recipe.size());
  fmt::print("  {:{}} {:>7} {:>7} {:>11} {:>9} {:>9} {:>7}{}\n", "recipe", width, "bpw", "linear",
             "bytes", "ppl", "KL", "top-1",
             with_speed ? fmt::format(" {:>9} {:>9} {:>9}", "prompt/s", "gen/s", "decode/s") : "");
  for (const Row& row : rows) {
    fmt::print("{} {:{}} {:7.3f} {:7.3f} {:11} {:9.3f}", row.is_best ? '*' : ' ', row.recipe, width,
               row.bpw, row.linear_bpw, row.bytes, row.eval.ppl);
    if (row.eval.has_base) {
      fmt::print(" {:9.5f} {:6.2f}%", row.eval.kl_mean, 100 * row.eval.top1);
    } else {
      fmt::print(" {:>9} {:>7}", "-", "-");
    }
    if (with_speed) {
      fmt::print(" {:9.0f} {:9.0f} {:>9}", row.speed.prompt.median(), row.speed.generated.median(),
                 row.decode_weights_per_second > 0
                     ? fmt::format("{:.2f} G", row.decode_weights_per_second / 1e9)
                     : "-");
    }
    fmt::print("\n");
  }
  fmt::print(
      "bpw: all bytes of the weight files over all parameters; linear: of the layers' matrices;\n"
      "KL: nats per token to the original with a plain cache; *: nothing smaller is as close to "
      "the original.\n{}",
      with_speed ? "decode/s: weights of the coded matrices decoded alone, on all threads.\n" : "");
}

// The original's text and that of the closest model of at most half its size.
void print_samples(const CompareOptions& o, const std::vector<Row>& rows) {
  const Row* closest = nullptr;
  for (const Row& row : rows) {
    if (2 * row.bytes > rows[0].bytes) continue;
    if (closest == nullptr || row.eval.kl_mean < closest->eval.kl_mean) closest = &row;
  }
  for (const Row* row : {&rows[0], closest}) {
    if (row != nullptr) fmt::print("\n[{}]\n{}{}\n", row->recipe, o.prompt, row->sample);
  }
}

void print_csv(const std::vector<Row>& rows) {
  fmt::print(
      "recipe,bytes,bpw,linear_bpw,compress_seconds,ppl,stderr,kl_mean,kl_p99,top1,"
      "prompt_tokens_per_second,generated_tokens_per_second,decode_weights_per_second,pareto\n");
  for (const Row& row : rows) {
    fmt::print(
        "\"{}\",{},{:.6f},{:.6f},{:.1f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.2f},{:.2f},{:.3g},{}"
        "\n",
        row.recipe, row.bytes, row.bpw, row.linear_bpw, row.compress_seconds, row.eval.ppl,
        row.eval.ppl_stderr, row.eval.kl_mean, row.eval.kl_p99,
        row.eval.has_base ? row.eval.top1 : 1.0, row.speed.prompt.median(),
        row.speed.generated.median(), row.decode_weights_per_second, row.is_best ? 1 : 0);
  }
}

// `corpus` is made when the first recipe needs it and serves all.
Result<Row> compress_one(const CompareOptions& o, const std::string& text, ProgressBar& bar,
                         std::optional<Corpus>& corpus) {
  QUERN_ASSIGN(const Recipe recipe, Recipe::load(text));
  Row row;
  row.recipe = find_recipe_preset(text) != nullptr ? text : recipe.canonical();
  row.path = output_folder(o, recipe.canonical());
  std::error_code problem;
  if (std::filesystem::exists(row.path, problem)) {
    row.compress_seconds = read_seconds(row.path);
    return row;
  }
  std::filesystem::create_directories(o.work, problem);
  if (problem) return error("{}: {}", o.work, problem.message());
  CompressOptions options = o.compress;
  options.model = o.model;
  options.out = row.path;
  options.recipe = text;
  options.observe = [&](const Json& event) {
    if (event["event"] == "progress") {
      bar.show(event["done"], fmt::format("{}  {}", event["what"].get<std::string>(), row.recipe));
    }
    return !interrupted();
  };
  if (recipe.needs_calibration()) {
    if (!corpus) {
      QUERN_ASSIGN(corpus, gather_corpus(options));
    }
    options.given_corpus = &*corpus;
  }
  const auto result = compress(options);
  if (!result) return tl::unexpected(in_context(result.error(), row.recipe));
  for (const std::string& note : result->notes) bar.note("note  " + note);
  row.compress_seconds = result->seconds;
  QUERN_TRY(
      write_file_atomically(seconds_file(row.path), fmt::format("{:.1f}\n", result->seconds)));
  return row;
}

Status run_compare(const CompareOptions& o) {
  const std::vector<std::string> recipes = split_recipes(o.recipes);
  for (const std::string& text : recipes) {  // all are checked before any work
    QUERN_TRY(Recipe::load(text));
  }
  QUERN_ASSIGN(const std::string text, evaluation_text(o.text));
  QUERN_ASSIGN(const auto base, Model::open(o.model));
  QUERN_TRY(base->make_cache(1, o.eval.kv));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o.model));
  const std::vector<Token> ids = tokenizer->tokenize(text);
  ProgressBar bar(o.json || o.csv);
  std::vector<Row> rows(1);
  rows[0].recipe = "original";
  std::optional<Corpus> corpus;
  for (const std::string& recipe : recipes) {
    QUERN_ASSIGN(Row row, compress_one(o, recipe, bar, corpus));
    rows.push_back(std::move(row));
  }
  std::vector<std::unique_ptr<Model>> opened;
  Models models = {base.get()};
  for (size_t i = 1; i < rows.size(); ++i) {
    QUERN_ASSIGN(auto model, Model::open(rows[i].path, o.activations));
    models.push_back(model.get());
    opened.push_back(std::move(model));
  }
  QUERN_TRY(measure_quality(o, models, ids, bar, rows));
  for (size_t i = 0; i < rows.size(); ++i) {
    QUERN_TRY(measure_one(o, *models[i], *tokenizer, rows[i]));
  }
  bar.clear();
  rank(rows);
  if (o.json) {
    Json list = Json::array();
    for (const Row& row : rows) {
      list.push_back(to_json(row));
      list.back()["kv"] = o.eval.kv.text;
    }
    fmt::print("{}\n", list.dump(1, ' ', false, Json::error_handler_t::replace));
  } else if (o.csv) {
    print_csv(rows);
  } else {
    print_table(rows, !o.no_speed);
    if (!o.prompt.empty()) print_samples(o, rows);
  }
  return {};
}

}  // namespace

Action declare_compare(CLI::App& app) {
  const auto o = std::make_shared<CompareOptions>();
  o->work = default_work_folder();
  add_model(app, o->model);
  app.add_option("--recipes", o->recipes, "recipes, separated by ';'")->required();
  add_evaluation(app, o->text, o->eval);
  add_calibration(app, o->compress);
  app.add_option("--work", o->work, "where compressed models are kept");
  app.add_option("-p,--prompt", o->prompt, "also continue this text greedily with each model");
  app.add_option("-n,--predict", o->n_predict, "tokens to continue it with");
  app.add_flag("--no-speed", o->no_speed, "do not time the models");
  app.add_flag("--csv", o->csv, "comma-separated output");
  add_activations(app, o->activations);
  add_kv(app, o->eval.kv);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Example:\n"
      "  quern compare models/tiny --recipes 'rtn(int(8)); rotate(rht) | ldlq(int(4, group=64))'");
  return [o] { return run_compare(*o); };
}

}  // namespace quern::cli
