// SPDX-License-Identifier: Apache-2.0
// compare: one model, several recipes, one table. Compressed models are kept under a folder by the
// digest of everything that made them, so a second comparison only measures.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>

#include "allocate/compress_mix.h"
#include "base/digest.h"
#include "base/file.h"
#include "cli/command.h"
#include "cli/compress_options.h"
#include "cli/task_runs.h"
#include "eval/samples.h"
#include "eval/speed.h"
#include "model/generate.h"
#include "recipe/presets.h"
#include "recipe/recipe.h"
#include "report/page.h"
#include "report/pareto_plot.h"

namespace quern::cli {
namespace {

struct CompareOptions {
  std::string model, recipes, text, work, prompt, kv_calibration;
  CompressOptions compress;
  EvalOptions eval;
  SpeedOptions speed;
  Activations activations{};
  TaskRequestOptions tasks;
  std::vector<std::string> reports;
  bool json = false, csv = false, markdown = false, plot = false, no_speed = false;
  int64_t n_predict = 48, n_samples = 0, layer_windows = 4;

  bool is_quiet() const { return json || csv || markdown; }
};

// A recipe's result on disk and what is known of how it was made.
struct Compressed {
  ComparedModel row;
  std::string path;
};

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
// bytes; that, and the errors behind each layer, are kept beside the folder.
std::string log_file(const std::string& path) { return path + ".json"; }

void read_log(const std::string& path, ComparedModel& row) {
  const auto log = read_json_file(log_file(path), 1 << 20);
  if (!log || !log->is_object()) return;
  row.compress_seconds = json_number_or(*log, "seconds", 0).value_or(0);
  const auto errors = log->find("output_errors");
  if (errors == log->end() || !errors->is_array()) return;
  for (const Json& entry : *errors) {
    row.output_errors.push_back(entry.is_number() ? entry.get<double>() : -1);
  }
}

Status write_log(const std::string& path, const ComparedModel& row) {
  const Json log = {{"seconds", row.compress_seconds}, {"output_errors", row.output_errors}};
  return write_file_atomically(log_file(path), log.dump() + "\n");
}

// The rows' models; the first is the original.
using Models = std::vector<const Model*>;

Status measure_quality(const CompareOptions& o, const Models& models, std::span<const Token> ids,
                       ProgressBar& bar, std::vector<ComparedModel>& rows) {
  EvalOptions eval = o.eval;
  eval.proceed = [&](double done) {
    bar.show(done, fmt::format("evaluate {} models", models.size()));
    return !interrupted();
  };
  QUERN_ASSIGN(const std::vector<EvalResult> results, evaluate(models, models[0], ids, eval));
  for (size_t i = 0; i < rows.size(); ++i) rows[i].eval = results[i];
  rows[0].eval.has_base = !eval.kv.is_plain();  // else it would be compared with itself
  return {};
}

Status continue_prompt(const CompareOptions& o, const Model& model, const Tokenizer& tokenizer,
                       ComparedModel& row) {
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

Status measure_one(const CompareOptions& o, const Model& model, const Tokenizer& tokenizer,
                   ComparedModel& row) {
  row.bytes = model.files().weight_bytes();
  row.bpw = model.files().bpw();
  row.linear_bpw = model.files().linear_bpw();
  row.tensors = tensor_costs(model.files());
  row.calibration = model.files().packed().calibration;
  row.calibration.erase("runs");
  if (!o.no_speed) {
    SpeedOptions speed = o.speed;
    speed.kv = o.eval.kv;
    speed.n_prompt = std::min(speed.n_prompt, model.desc().n_context - speed.n_generate);
    QUERN_ASSIGN(const SpeedResult result, measure_speed(model, speed));
    row.prompt_rate = result.prompt.median();
    row.generated_rate = result.generated.median();
    row.decode_rate = measure_decoding(model);
  }
  return o.prompt.empty() ? Status() : continue_prompt(o, model, tokenizer, row);
}

// What each layer of each model costs alone, for reports.
Status measure_layers(const CompareOptions& o, const Models& models, std::span<const Token> ids,
                      ProgressBar& bar, Comparison& comparison) {
  if (o.reports.empty() || o.layer_windows == 0) return {};
  EvalOptions eval = o.eval;
  const int64_t most = eval.max_windows > 0 ? eval.max_windows : o.layer_windows;
  eval.max_windows = std::min(o.layer_windows, most);
  Corpus corpus;
  QUERN_ASSIGN(corpus.samples, window_inputs(models[0]->desc(), ids, eval));
  comparison.evaluation["layer_tokens"] = corpus.n_tokens();
  for (size_t i = 1; i < models.size(); ++i) {
    ComparedModel& row = comparison.rows[i];
    if (models[i]->files().basis().is_sliced()) continue;
    const auto proceed = [&](double done) {
      bar.show(done, "layers alone of " + row.recipe);
      return !interrupted();
    };
    QUERN_ASSIGN(row.alone, swap_layers(models[0]->files(), *models[i], corpus, proceed));
  }
  return {};
}

Status measure_samples(const CompareOptions& o, const Models& models, const Tokenizer& tokenizer,
                       std::span<const Token> ids, ProgressBar& bar,
                       std::vector<ComparedModel>& rows) {
  if (o.n_samples == 0) return {};
  for (size_t i = 1; i < rows.size(); ++i) {
    SampleOptions options;
    options.n_samples = o.n_samples;
    options.n_predict = o.n_predict;
    options.kv = o.eval.kv;
    options.proceed = [&](double done) {
      bar.show(done, "samples of " + rows[i].recipe);
      return !interrupted();
    };
    QUERN_ASSIGN(const SampleResult result,
                 compare_samples(*models[i], *models[0], tokenizer, ids, options));
    for (const Sample& sample : result.samples) {
      rows[i].samples.push_back({valid_utf8(tokenizer.detokenize(sample.prompt)),
                                 valid_utf8(tokenizer.detokenize_middle(sample.text)),
                                 valid_utf8(tokenizer.detokenize_middle(sample.base_text)),
                                 sample.n_agreed});
    }
  }
  return {};
}

Status measure_tasks(const CompareOptions& o, const Models& models, const Tokenizer& tokenizer,
                     const std::vector<Task>& tasks, ProgressBar& bar,
                     std::vector<ComparedModel>& rows) {
  for (const Task& task : tasks) {
    std::optional<TaskResult> base;  // of the original, with a plain cache
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::string label = fmt::format("{}: {}", task.name, rows[i].recipe);
      const KvCacheRecipe kv = i == 0 ? KvCacheRecipe() : o.eval.kv;
      QUERN_ASSIGN(TaskResult result,
                   run_task(*models[i], tokenizer, task, kv, o.tasks.bos, label, bar));
      rows[i].tasks.push_back(task_json(task, result, base ? &*base : nullptr));
      if (i == 0) base = std::move(result);
    }
  }
  return {};
}

// The original's text and that of the closest model of at most half its size.
void print_prompts(const CompareOptions& o, const std::vector<ComparedModel>& rows) {
  const ComparedModel* closest = nullptr;
  for (const ComparedModel& row : rows) {
    if (2 * row.bytes > rows[0].bytes) continue;
    if (closest == nullptr || row.eval.kl_mean < closest->eval.kl_mean) closest = &row;
  }
  for (const ComparedModel* row : {&rows[0], closest}) {
    if (row != nullptr) fmt::print("\n[{}]\n{}{}\n", row->recipe, o.prompt, row->sample);
  }
}

// Columns of the terminal; 80 where there is none.
int terminal_columns() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char* columns = std::getenv("COLUMNS");
  const int n = columns == nullptr ? 0 : std::atoi(columns);
  return n > 0 ? n : 80;
}

void print_plot(const std::vector<ComparedModel>& rows) {
  std::vector<PlotPoint> points;
  for (size_t i = 1; i < rows.size(); ++i) {
    points.push_back({rows[i].recipe, static_cast<double>(rows[i].bytes), rows[i].eval.kl_mean,
                      rows[i].is_best});
  }
  fmt::print("\n{}", pareto_plot(points, {terminal_columns(), 20}));
}

using Writer = std::string (*)(const Comparison&);

std::string full_json(const Comparison& comparison) {
  return to_json(comparison).dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

constexpr std::pair<std::string_view, Writer> kReportForms[] = {
    {".html", report_page},
    {".json", full_json},
    {".csv", to_csv},
    {".md", to_markdown},
};

Result<Writer> report_form(const std::string& path) {
  for (const auto& [suffix, writer] : kReportForms) {
    if (path.ends_with(suffix)) return writer;
  }
  return usage_error("--report {}: expected a name that ends in .html, .json, .csv or .md", path);
}

// The commands that make and measure a row alone.
void write_commands(const CompareOptions& o, const std::string& recipe, ComparedModel& row) {
  const auto number = [](auto value) { return fmt::format("{}", value); };
  std::vector<std::string> words = {"quern", "eval", row.recipe == "original" ? o.model : "OUT"};
  if (row.recipe != "original") words.insert(words.end(), {"--base", o.model});
  if (!o.text.empty()) words.insert(words.end(), {"--text", o.text});
  words.insert(words.end(), {"--ctx", number(o.eval.n_ctx), "--protocol",
                             std::string(protocol_name(o.eval.protocol))});
  if (o.eval.max_windows > 0) {
    words.insert(words.end(), {"--windows", number(o.eval.max_windows)});
  }
  if (!o.eval.kv.is_plain()) words.insert(words.end(), {"--kv", o.eval.kv.text});
  if (o.activations != Activations::kInt8) {
    words.insert(words.end(), {"--activations", std::string(activations_name(o.activations))});
  }
  row.eval_command = shell_words(words);
  if (row.recipe == "original") return;
  words = {"quern", "compress", o.model, "-o", "OUT", "--recipe", recipe};
  if (!row.calibration.empty()) {
    if (!o.compress.calibration.empty()) {
      words.insert(words.end(), {"--calibration", o.compress.calibration});
    }
    words.insert(words.end(), {"--nsamples", number(o.compress.corpus.n_samples), "--seqlen",
                               number(o.compress.corpus.length)});
  }
  words.insert(words.end(), {"--seed", number(o.compress.seed)});
  row.compress_command = shell_words(words);
}

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

Comparison describe(const CompareOptions& o, const Model& base, std::span<const Token> ids) {
  Comparison comparison;
  comparison.created = now_text();
  comparison.command = command_line();
  comparison.machine = describe_machine();
  comparison.prompt = o.prompt;
  comparison.has_speed = !o.no_speed;
  const ModelFiles& files = base.files();
  comparison.model = {{"path", valid_utf8(o.model)},         {"arch", base.desc().arch},
                      {"layers", base.desc().layers.size()}, {"params", files.n_params()},
                      {"bytes", files.weight_bytes()},       {"digest", files.digest()}};
  comparison.evaluation = {
      {"text", o.text.empty() ? "the bundled evaluation text" : valid_utf8(o.text)},
      {"text_digest", digest_of({reinterpret_cast<const char*>(ids.data()), ids.size_bytes()})},
      {"text_tokens", ids.size()},
      {"protocol", protocol_name(o.eval.protocol)},
      {"ctx", o.eval.n_ctx},
      {"kv", o.eval.kv.text},
      {"activations", activations_name(o.activations)}};
  return comparison;
}

// `corpus` is made when the first recipe needs it and serves all.
Result<Compressed> compress_one(const CompareOptions& o, const std::string& text, ProgressBar& bar,
                                std::optional<Corpus>& corpus) {
  QUERN_ASSIGN(const Recipe recipe, Recipe::load(text));
  Compressed made;
  ComparedModel& row = made.row;
  row.recipe = find_recipe_preset(text) != nullptr ? text : recipe.canonical();
  made.path = output_folder(o, recipe.canonical());
  std::error_code problem;
  if (std::filesystem::exists(made.path, problem)) {
    read_log(made.path, row);
    return made;
  }
  std::filesystem::create_directories(o.work, problem);
  if (problem) return error("{}: {}", o.work, problem.message());
  CompressOptions options = o.compress;
  options.model = o.model;
  options.out = made.path;
  options.recipe = text;
  options.observe = [&](const Json& event) {
    if (event["event"] == "progress") {
      bar.show(event["done"], fmt::format("{}  {}", event["what"].get<std::string>(), row.recipe));
    } else if (event["event"] == "layer" && event["output_error"] >= 0) {
      row.output_errors.resize(event["layer"].get<size_t>(), -1);  // of a run that went on: unknown
      row.output_errors.push_back(event["output_error"]);
    }
    return !interrupted();
  };
  if (recipe.needs_calibration()) {
    if (!corpus) {
      QUERN_ASSIGN(corpus, gather_corpus(options));
    }
    options.given_corpus = &*corpus;
  }
  const auto result = compress_any(options, cache_folder());
  if (!result) return tl::unexpected(in_context(result.error(), row.recipe));
  for (const std::string& note : result->notes) bar.note("note  " + note);
  row.compress_seconds = result->seconds;
  QUERN_TRY(write_log(made.path, row));
  return made;
}

Status show(const CompareOptions& o, const Comparison& comparison) {
  for (const std::string& path : o.reports) {
    QUERN_ASSIGN(const Writer writer, report_form(path));
    QUERN_TRY(write_file_atomically(path, writer(comparison)));
  }
  if (o.json) {
    Json list = Json::array();
    for (const ComparedModel& row : comparison.rows) {
      list.push_back(to_json(row));
      list.back()["kv"] = o.eval.kv.text;
    }
    fmt::print("{}\n", list.dump(1, ' ', false, Json::error_handler_t::replace));
  } else if (o.csv) {
    fmt::print("{}", to_csv(comparison));
  } else if (o.markdown) {
    fmt::print("{}", to_markdown(comparison));
  } else {
    fmt::print("{}", to_table(comparison));
    if (o.plot) print_plot(comparison.rows);
    if (!o.prompt.empty()) print_prompts(o, comparison.rows);
  }
  return {};
}

Status run_compare(CompareOptions o) {
  const std::vector<std::string> recipes = split_texts(o.recipes);
  for (const std::string& text : recipes) {  // all are checked before any work
    QUERN_TRY(Recipe::load(text));
  }
  for (const std::string& path : o.reports) QUERN_TRY(report_form(path));
  QUERN_ASSIGN(const std::vector<Task> tasks, read_tasks(o.tasks));
  QUERN_ASSIGN(const std::string text, evaluation_text(o.text));
  QUERN_ASSIGN(const auto base, Model::open(o.model));
  QUERN_TRY(plan_cache(*base, o.kv_calibration, o.is_quiet() ? Output::kQuiet : Output::kText,
                       o.eval.kv));
  QUERN_TRY(base->make_cache(1, o.eval.kv));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o.model));
  o.eval.n_ctx = std::min(o.eval.n_ctx, base->desc().n_context);
  const std::vector<Token> ids = tokenizer->tokenize(text);
  ProgressBar bar(o.is_quiet());
  Comparison comparison = describe(o, *base, ids);
  std::vector<ComparedModel>& rows = comparison.rows;
  rows.resize(1);
  rows[0].recipe = "original";
  std::optional<Corpus> corpus;
  std::vector<std::unique_ptr<Model>> opened;
  Models models = {base.get()};
  std::vector<std::string> paths = {o.model};
  for (const std::string& recipe : recipes) {
    QUERN_ASSIGN(Compressed made, compress_one(o, recipe, bar, corpus));
    rows.push_back(std::move(made.row));
    paths.push_back(std::move(made.path));
  }
  for (size_t i = 1; i < rows.size(); ++i) {
    QUERN_ASSIGN(auto model, Model::open(paths[i], o.activations));
    models.push_back(model.get());
    opened.push_back(std::move(model));
  }
  QUERN_TRY(measure_quality(o, models, ids, bar, rows));
  for (size_t i = 0; i < rows.size(); ++i) {
    QUERN_TRY(measure_one(o, *models[i], *tokenizer, rows[i]));
    write_commands(o, i == 0 ? "" : recipes[i - 1], rows[i]);
    const std::optional<double> shared = calibration_overlap(models[i]->files(), ids);
    if (shared) rows[i].calibration["overlap"] = *shared;
    if (const std::string warning = overlap_warning(shared); !warning.empty()) {
      comparison.warnings.push_back(fmt::format("{}: {}", rows[i].recipe, warning));
    }
  }
  QUERN_TRY(measure_layers(o, models, ids, bar, comparison));
  QUERN_TRY(measure_samples(o, models, *tokenizer, ids, bar, rows));
  QUERN_TRY(measure_tasks(o, models, *tokenizer, tasks, bar, rows));
  bar.clear();
  for (const std::string& warning : comparison.warnings) {
    fmt::print(stderr, "quern: warning: {}\n", warning);
  }
  rank(rows);
  return show(o, comparison);
}

}  // namespace

Action declare_compare(CLI::App& app) {
  const auto o = std::make_shared<CompareOptions>();
  o->work = cache_folder();
  add_model(app, o->model);
  app.add_option("--recipes", o->recipes, "recipes, separated by ';'")->required();
  add_evaluation(app, o->text, o->eval);
  add_calibration(app, o->compress);
  app.add_option("--work", o->work, "where compressed models are kept");
  app.add_option("--report", o->reports,
                 "files to write: .html (a page of charts and tables that needs nothing else), "
                 ".json, .csv, .md")
      ->delimiter(',');
  app.add_option(
         "--layer-windows", o->layer_windows,
         "windows of the text on which a report measures the KL of each layer alone; 0: none")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_flag("--plot", o->plot, "also plot KL against bytes, in characters");
  app.add_option("--samples", o->n_samples,
                 "greedy text of so many prompts, cut from the text, in the report")
      ->check(CLI::Range(0, 1 << 16));
  add_tasks(app, o->tasks, "also answer zero-shot tasks");
  app.add_option("-p,--prompt", o->prompt, "also continue this text greedily with each model");
  app.add_option("-n,--predict", o->n_predict, "tokens to continue it with");
  app.add_flag("--no-speed", o->no_speed, "do not time the models");
  app.add_flag("--csv", o->csv, "comma-separated output");
  app.add_flag("--markdown", o->markdown, "output as a page of Markdown");
  add_activations(app, o->activations);
  add_kv(app, o->activations, o->eval.kv, o->kv_calibration);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern compare models/tiny --recipes 'rtn(int(8)); rotate(rht) | ldlq(int(4, group=64))'\n"
      "  quern compare models/tiny --recipes 'quern-4bit; quern-3bit; gptq-4bit' --plot \\\n"
      "      --report out.html,out.csv --samples 4 --tasks arc_easy.jsonl --limit 200");
  return [o] { return run_compare(*o); };
}

}  // namespace quern::cli
