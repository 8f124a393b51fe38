// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <memory>

#include "base/file.h"
#include "cli/command.h"
#include "cli/eval_caches.h"
#include "cli/eval_needles.h"
#include "cli/task_runs.h"
#include "eval/samples.h"
#include "report/comparison.h"

namespace quern::cli {
namespace {

void print_details(const ModelFiles& files, const EvalResult& result) {
  fmt::print("size        {}, {:.3f} bits per weight\n",
             human_bytes(static_cast<double>(files.weight_bytes())), files.bpw());
  fmt::print("speed       {:.1f} tokens/s\n", result.tokens_per_second);
  fmt::print("cache       {} a window\n", human_bytes(result.kv_bytes));
  if (result.has_base) {
    fmt::print("divergence  {:.5f} +- {:.5f} nats mean, {:.4f} at 99 %, same top token {:.2f} %\n",
               result.kl_mean, result.kl_stderr, result.kl_p99, 100 * result.top1);
  }
  if (result.has_baseline) {
    fmt::print(
        "baseline    at least {:.5f}, and +- {:.5f} by the tokens drawn; perplexity of the base "
        "{:.4f}\n",
        result.kl_least, result.kl_draw_stderr, result.base_ppl);
  }
}

std::string answer_lines(const Task& task, const TaskResult& result) {
  std::string lines;
  for (size_t i = 0; i < result.answers.size(); ++i) {
    const TaskAnswer& answer = result.answers[i];
    const Json json = {{"task", task.name},
                       {"item", i},
                       {"log_likelihoods", answer.log_likelihoods},
                       {"is_greedy", answer.is_greedy},
                       {"gold", task.items[i].gold},
                       {"pick", answer.pick},
                       {"pick_norm", answer.pick_norm}};
    lines += json.dump() + "\n";
  }
  return lines;
}

void print_task(const Task& task, const TaskResult& result, const TaskResult* base) {
  fmt::print("{:<24} {:>6} {:>6.2f} +- {:.2f}", task.name, result.answers.size(),
             100 * result.accuracy.value, 100 * result.accuracy.stderr_of);
  if (task.kind == TaskKind::kChoices) {
    fmt::print("  {:>6.2f} +- {:.2f}", 100 * result.accuracy_norm.value,
               100 * result.accuracy_norm.stderr_of);
  } else if (task.kind == TaskKind::kTarget) {
    fmt::print("  ppl {:.2f}", std::exp(-result.log_likelihood.value));
  }
  fmt::print("\n");
  if (base == nullptr) return;
  const PairedAccuracy paired = compare_paired(*base, result);
  fmt::print("{:<24} {:>+13.2f} +- {:.2f}  {} won, {} lost, p = {:.2g}: {}\n", "  against the base",
             100 * paired.difference.value, 100 * paired.difference.stderr_of, paired.n_won,
             paired.n_lost, paired.p_value,
             paired.p_value < 0.05 ? "a difference" : "no more than chance");
}

Status run_tasks(const std::string& path, const Model& model, const Model* base,
                 const KvCacheRecipe& kv, const TaskRequestOptions& o, const std::string& answers,
                 bool json) {
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(path));
  QUERN_ASSIGN(const std::vector<Task> tasks, read_tasks(o));
  ProgressBar bar(json);
  Json results = Json::array();
  std::string lines;
  if (!json) fmt::print("{:<24} {:>6} {:>14}  {}\n", "task", "items", "acc, %", "acc_norm, %");
  for (const Task& task : tasks) {
    QUERN_ASSIGN(const TaskResult result,
                 run_task(model, *tokenizer, task, kv, o.bos, task.name, bar));
    std::optional<TaskResult> before;
    if (base != nullptr) {
      QUERN_ASSIGN(before, run_task(*base, *tokenizer, task, {}, o.bos, task.name, bar));
    }
    bar.clear();
    results.push_back(task_json(task, result, before ? &*before : nullptr));
    if (!json) print_task(task, result, before ? &*before : nullptr);
    lines += answer_lines(task, result);
  }
  if (!answers.empty()) QUERN_TRY(write_file_atomically(answers, lines));
  if (json) fmt::print("{}\n", Json{{"tasks", results}}.dump());
  return {};
}

Status run_samples(const std::string& path, const Model& model, const Model& base,
                   const std::string& text, SampleOptions options, bool json) {
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(path));
  ProgressBar bar(json);
  options.proceed = [&](double done) {
    bar.show(done, "samples");
    return !interrupted();
  };
  QUERN_ASSIGN(const SampleResult result,
               compare_samples(model, base, *tokenizer, tokenizer->tokenize(text), options));
  bar.clear();
  Json samples = Json::array();
  for (const Sample& sample : result.samples) {
    const std::string prompt = tokenizer->detokenize(sample.prompt),
                      own = tokenizer->detokenize_middle(sample.text),
                      other = tokenizer->detokenize_middle(sample.base_text);
    if (json) {
      samples.push_back({{"prompt", valid_utf8(prompt)},
                         {"text", valid_utf8(own)},
                         {"base_text", valid_utf8(other)},
                         {"agreed_tokens", sample.n_agreed}});
    } else {
      fmt::print("prompt     {}\nmodel      {}\nbase       {}\nagreed     {} of {} tokens\n\n",
                 prompt, own, other, sample.n_agreed, options.n_predict);
    }
  }
  if (json) {
    const Json all = {{"agreed_tokens", result.n_agreed},
                      {"repetition", result.repetition},
                      {"base_repetition", result.base_repetition},
                      {"samples", samples}};
    fmt::print("{}\n", all.dump());
    return {};
  }
  fmt::print(
      "agreed     {:.1f} of {} tokens\nrepeated   {:.1f} % of runs of 4 tokens, the base "
      "{:.1f} %\n",
      result.n_agreed, options.n_predict, 100 * result.repetition, 100 * result.base_repetition);
  return {};
}

// Files of what a base said, in its place.
struct BaselineOptions {
  std::string save, use, either;  // `either`: llama.cpp's option, which saves unless asked to use
  bool is_used = false;
  int64_t k = 64, n_drawn = 8;
};

void add_baseline(CLI::App& app, BaselineOptions& o) {
  app.add_option("--save-baseline", o.save,
                 "keep what the model says of the text, to measure others against it");
  app.add_option("--baseline", o.use, "measure the divergence from what was kept of a base");
  app.add_option("--baseline-top", o.k, "likeliest tokens kept of a position")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--baseline-draws", o.n_drawn, "tokens kept that are drawn from the rest")
      ->check(CLI::Range(2, 1 << 16))
      ->capture_default_str();
  app.add_option("--kl-divergence-base", o.either,
                 "as --save-baseline, and with --kl-divergence as --baseline");
  app.add_flag("--kl-divergence", o.is_used, "use the file of --kl-divergence-base");
}

Status settle(BaselineOptions& o, bool has_base) {
  if (o.is_used && o.either.empty()) return usage_error("--kl-divergence: --kl-divergence-base?");
  std::string& file = o.is_used ? o.use : o.save;
  if (!o.either.empty()) {
    if (!file.empty()) return usage_error("two names for one baseline: {}, {}", file, o.either);
    file = o.either;
  }
  if (!o.use.empty() && has_base) return usage_error("--baseline takes the place of --base");
  if (!o.save.empty() && (has_base || !o.use.empty())) {
    return usage_error("--save-baseline goes without another base");
  }
  return {};
}

struct EvalCommand {
  std::string model, base, text;
  EvalOptions eval;
  TaskRequestOptions tasks;
  std::string answers;
  BaselineOptions baseline;
  int64_t n_samples = 0;
  Activations activations{};
  bool finds_needles = false;
  NeedleOptions needles;
  std::string caches, kv_calibration;
  bool json = false, csv = false;
};

Status run_text(const EvalCommand& o, const Model& model, const Model* base,
                const std::string& text) {
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o.model));
  const std::vector<Token> ids = tokenizer->tokenize(text);
  ProgressBar bar(o.json);
  EvalOptions options = o.eval;
  if (!check_context(model.desc(), options.n_ctx, options.kv)) {
    options.n_ctx = std::min(options.n_ctx, model.desc().n_context);
  }
  options.proceed = [&](double done) {
    bar.show(done, "eval");
    return !interrupted();
  };
  std::optional<Baseline> baseline;
  std::optional<BaselineWriter> writer;
  if (!o.baseline.use.empty()) {
    QUERN_ASSIGN(baseline, Baseline::open(o.baseline.use));
    options.baseline = &*baseline;
  }
  if (!o.baseline.save.empty()) {
    if (!options.kv.is_plain()) return usage_error("--save-baseline: a base has a plain cache");
    writer.emplace(std::min(o.baseline.k, model.desc().n_vocab), o.baseline.n_drawn);
    options.save = &*writer;
  }
  QUERN_ASSIGN(const EvalResult result, evaluate(model, base, ids, options));
  bar.clear();
  if (writer) {
    QUERN_ASSIGN(const BaselineText kept, baseline_text(model.desc(), ids, options));
    QUERN_TRY(writer->write(o.baseline.save, kept, model.files().digest(), o.model));
  }
  const ModelFiles& files = model.files();
  const std::optional<double> shared = calibration_overlap(files, ids);
  if (const std::string warning = overlap_warning(shared); !warning.empty()) {
    fmt::print(stderr, "quern: warning: {}\n", warning);
  }
  if (o.json) {
    Json json = quern::to_json(result);
    json["bytes"] = files.weight_bytes();
    json["bpw"] = files.bpw();
    json["linear_bpw"] = files.linear_bpw();
    json["protocol"] = protocol_name(options.protocol);
    json["ctx"] = options.n_ctx;
    json["kv"] = options.kv.text;
    const CacheBits bits =
        cache_bits(model.desc(), options.kv, options.n_ctx, {result.kv_bits, result.kv_held_bits});
    json["kv_bits"] = bits.page;
    json["kv_held_bits"] = bits.held;
    json["text"] = o.text.empty() ? "bundled" : valid_utf8(o.text);
    if (shared) json["calibration_overlap"] = *shared;
    if (baseline) json["baseline"] = {{"model", baseline->model()}, {"name", baseline->name()}};
    fmt::print("{}\n", json.dump());
    return {};
  }
  fmt::print("perplexity  {:.4f} +- {:.4f}  ({} tokens, {} windows of {})\n", result.ppl,
             result.ppl_stderr, result.n_tokens, protocol_name(options.protocol), options.n_ctx);
  print_details(files, result);
  return {};
}

// A row for each cache, of --caches or the one of --kv; all are checked before any work.
Status run_caches(const EvalCommand& o, const Model& model, const Model* base,
                  const std::string& text) {
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o.model));
  EvalOptions options = o.eval;
  options.n_ctx = std::min(options.n_ctx, model.desc().n_context);
  const CacheTable table = o.json  ? CacheTable::kJson
                           : o.csv ? CacheTable::kCsv
                                   : CacheTable::kText;
  std::vector<NamedCache> caches;
  for (const std::string& name : split_texts(o.caches)) {
    QUERN_ASSIGN(KvCacheRecipe recipe, KvCacheRecipe::parse(name));
    QUERN_TRY(plan_cache(model, o.kv_calibration,
                         table == CacheTable::kText ? Output::kText : Output::kQuiet, recipe));
    caches.push_back({name, std::move(recipe)});
  }
  if (o.caches.empty()) caches.push_back({o.eval.kv.text, o.eval.kv});
  for (const NamedCache& cache : caches) QUERN_TRY(model.make_cache(1, cache.recipe));
  const std::vector<Token> ids = tokenizer->tokenize(text);
  if (!o.finds_needles) return eval_caches(model, ids, caches, options, table);
  NeedleOptions needles = o.needles;
  needles.n_ctx = options.n_ctx;
  return eval_needles(model, base != nullptr ? *base : model, ids, caches, needles, table);
}

Status run_eval(EvalCommand o) {
  QUERN_TRY(settle(o.baseline, !o.base.empty()));
  if (!o.caches.empty() && !o.finds_needles && !o.base.empty()) {
    return usage_error("--caches: each beside the plain cache of the same model, without --base");
  }
  if (o.csv && o.caches.empty() && !o.finds_needles) {
    return usage_error("--csv is for --caches and --needle");
  }
  QUERN_ASSIGN(const auto model, Model::open(o.model, o.activations));
  std::unique_ptr<Model> base;
  if (!o.base.empty()) {
    QUERN_ASSIGN(base, Model::open(o.base));
  }
  QUERN_TRY(plan_cache(*model, o.kv_calibration, o.json || o.csv ? Output::kQuiet : Output::kText,
                       o.eval.kv));
  if (!o.tasks.files.empty())
    return run_tasks(o.model, *model, base.get(), o.eval.kv, o.tasks, o.answers, o.json);
  QUERN_ASSIGN(const std::string text, evaluation_text(o.text));
  if (!o.caches.empty() || o.finds_needles) return run_caches(o, *model, base.get(), text);
  if (o.n_samples == 0) return run_text(o, *model, base.get(), text);
  if (base == nullptr) return usage_error("--samples needs --base, the model to compare with");
  SampleOptions options;
  options.n_samples = o.n_samples;
  options.kv = o.eval.kv;
  return run_samples(o.model, *model, *base, text, options, o.json);
}

// Options that would be ignored beside others, or without them.
void exclude_options(CLI::App& app) {
  using Names = std::initializer_list<const char*>;
  const auto exclude = [&app](Names some, Names others) {
    for (const char* one : some) {
      for (const char* other : others) app.get_option(one)->excludes(other);
    }
  };
  exclude({"--tasks", "--samples", "--needle", "--caches"},
          {"--save-baseline", "--baseline", "--kl-divergence-base", "--kl-divergence"});
  exclude({"--needle", "--caches"}, {"--tasks", "--samples"});
  exclude({"--needle", "--tasks", "--samples"}, {"--windows", "--protocol"});
  exclude({"--tasks"}, {"--text", "--ctx", "--samples"});
  exclude({"--samples"}, {"--ctx"});
  exclude({"--caches"}, {"--kv"});
  for (const char* detail : {"--answers", "--limit", "--bos"}) {
    app.get_option(detail)->needs("--tasks");
  }
  for (const char* detail : {"--needle-copies", "--needle-depths", "--needle-samples", "--seed"}) {
    app.get_option(detail)->needs("--needle");
  }
}

}  // namespace

Action declare_eval(CLI::App& app) {
  const auto o = std::make_shared<EvalCommand>();
  add_model(app, o->model);
  app.add_option("--base", o->base, "model to measure the divergence from");
  add_evaluation(app, o->text, o->eval);
  add_tasks(app, o->tasks, "zero-shot tasks instead of a text");
  app.add_option("--answers", o->answers,
                 "of tasks: write log-likelihoods and picks, one JSON object a line");
  app.add_option("--samples", o->n_samples,
                 "greedy text of so many prompts beside that of the base")
      ->check(CLI::Range(1, 1 << 16));
  add_baseline(app, o->baseline);
  add_activations(app, o->activations);
  add_kv(app, o->activations, o->eval.kv, o->kv_calibration);
  app.add_option("--caches", o->caches,
                 "several caches, separated by semicolons: a table of what each costs");
  app.add_flag("--csv", o->csv, "of --caches and --needle: as comma-separated values");
  add_needles(app, o->finds_needles, o->needles);
  exclude_options(app);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n  quern eval out --text wiki.txt --ctx 1024 --base models/tiny --json\n"
      "  quern eval out --base models/tiny --tasks arc_easy.jsonl,lambada.jsonl --limit 500\n"
      "  quern eval models/tiny --save-baseline tiny.kl && quern eval out --baseline tiny.kl");
  return [o] { return run_eval(*o); };
}

}  // namespace quern::cli
