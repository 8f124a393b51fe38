// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>

#include "allocate/compress_mix.h"
#include "cli/command.h"
#include "cli/compress_options.h"

namespace quern::cli {

void add_calibration(CLI::App& app, CompressOptions& options) {
  app.add_option("--calibration", options.calibration,
                 "text file to calibrate on; default: text drawn from the model");
  app.add_option("--nsamples", options.corpus.n_samples, "calibration samples")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--seqlen", options.corpus.length, "tokens of a sample")
      ->check(CLI::Range(2, 1 << 20));
  app.add_option("-s,--seed", options.seed, "same seed, same bytes")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 53));
}

std::string cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) return std::string(cache) + "/quern";
  if (const char* home = std::getenv("HOME")) return std::string(home) + "/.cache/quern";
  return ".quern-cache";
}

namespace {

std::string layer_line(const Json& event) {
  double worst = 0;
  std::string worst_name;
  for (const auto& [name, row] : event["matrices"].items()) {
    if (row["error"] >= worst) {
      worst = row["error"];
      worst_name = name;
    }
  }
  std::string line = fmt::format("layer {:3d}", event["layer"].get<int>());
  if (const double output = event["output_error"]; output >= 0) {
    line += fmt::format("  output error {:.3e}", output);
  }
  if (!worst_name.empty()) line += fmt::format("  worst {:.3e} ({})", worst, worst_name);
  return line;
}

// What a compressed model must keep to take its place.
struct Gate {
  double max_kl = 0, max_ppl_ratio = 0;  // 0: not asked
  std::string text;
  EvalOptions eval;
  Activations activations{};

  bool is_asked() const { return max_kl > 0 || max_ppl_ratio > 0; }
};

void add_gate(CLI::App& app, Gate& gate) {
  app.add_option("--max-kl", gate.max_kl,
                 "refuse a result that diverges from the original by more nats per token")
      ->check(CLI::PositiveNumber);
  app.add_option("--max-ppl-ratio", gate.max_ppl_ratio,
                 "refuse a result whose perplexity is more times that of the original")
      ->check(CLI::PositiveNumber);
  auto* text = app.add_option("--text", gate.text,
                              "text to measure these on; default: the bundled evaluation text");
  auto* ctx = app.add_option("--ctx,-c", gate.eval.n_ctx, "tokens of a window of it")
                  ->check(CLI::Range(4, 1 << 24));
  auto* windows = app.add_option("--windows", gate.eval.max_windows, "its first windows; 0: all");
  for (CLI::Option* option : {text, ctx, windows}) option->group("Measuring the result");
  add_activations(app, gate.activations);
}

struct Divergence {
  double kl = 0, ppl_ratio = 0;
};

Result<Divergence> measure(const Gate& gate, const std::string& original, const std::string& folder,
                           ProgressBar& bar, bool json) {
  QUERN_ASSIGN(const std::string text, evaluation_text(gate.text));
  QUERN_ASSIGN(const auto base, Model::open(original));
  QUERN_ASSIGN(const auto model, Model::open(folder, gate.activations));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(original));
  EvalOptions options = gate.eval;
  options.kv = usual_kv(gate.activations);
  options.n_ctx = std::min(options.n_ctx, base->desc().n_context);
  options.proceed = [&](double done) {
    bar.show(done, "measure");
    return !interrupted();
  };
  const Model* const both[] = {model.get(), base.get()};
  QUERN_ASSIGN(const auto results, evaluate(both, base.get(), tokenizer->tokenize(text), options));
  const Divergence measured{results[0].kl_mean, results[0].ppl / results[1].ppl};
  if (json) {
    fmt::print(
        "{}\n",
        Json{{"event", "measured"}, {"kl_mean", measured.kl}, {"ppl_ratio", measured.ppl_ratio}}
            .dump());
    std::fflush(stdout);
  } else {
    bar.note(fmt::format("measured  KL {:.5f}, perplexity x {:.4f}, {} tokens", measured.kl,
                         measured.ppl_ratio, results[0].n_tokens));
  }
  return measured;
}

// So that NaN is refused too.
Status check(const Gate& gate, const Divergence& measured) {
  if (gate.max_kl > 0 && !(measured.kl <= gate.max_kl)) {
    return error("the result diverges by {:.5f} nats per token, more than --max-kl {}", measured.kl,
                 gate.max_kl);
  }
  if (gate.max_ppl_ratio > 0 && !(measured.ppl_ratio <= gate.max_ppl_ratio)) {
    return error("the result has {:.4f} times the perplexity, more than --max-ppl-ratio {}",
                 measured.ppl_ratio, gate.max_ppl_ratio);
  }
  return {};
}

// Every matrix and both ends, each at the rate that serves the whole best.
constexpr char kMixRecipe[] = "rotate(ends=turned) | mix @ all+embed";

void add_target(CLI::App& app, MixOptions& mix, double& size) {
  const std::map<std::string, double> units = {{"b", 1},        {"kb", 1e3},    {"mb", 1e6},
                                               {"gb", 1e9},     {"tb", 1e12},   {"kib", 0x1p10},
                                               {"mib", 0x1p20}, {"gib", 0x1p30}};
  std::vector<CLI::Option*> options = {
      app.add_option("--size", size, "the best model whose weight files fit: 3.8GB, 500MiB")
          ->transform(
              CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::CASE_INSENSITIVE, "SIZE")),
      app.add_option("--bits", mix.target.bpw, "the same in bits per weight of the whole model")
          ->check(CLI::Range(0.1, 32.0)),
      app.add_option("--plan", mix.plan,
                     "plan file: carried out if it exists, else written; it may be edited"),
      app.add_option("--curves", mix.curves,
                     "file of measured curves, for other sizes; default: in the cache folder"),
      app.add_flag("--dry-run", mix.dry_run, "measure and print the plan, write no model"),
      app.add_flag("!--no-check", mix.check,
                   "do not make the uniform model of the same size to compare with")};
  for (CLI::Option* option : options) option->group("Size");
}

}  // namespace

std::function<bool(const Json&)> compress_observer(ProgressBar& bar, bool json) {
  return [&bar, json](const Json& event) {
    if (json) {
      fmt::print("{}\n", event.dump());
      std::fflush(stdout);
      return !interrupted();
    }
    const std::string kind = event["event"];
    if (kind == "plan") {
      bar.note(fmt::format("recipe  {}\npeak    about {} beyond mapped files",
                           event["recipe"].get<std::string>(),
                           human_bytes(event["peak_bytes"].get<double>())));
      for (const Json& note : event["notes"]) bar.note("note    " + note.get<std::string>());
      if (const int steps = event["finished_steps"]; steps > 0) {
        bar.note(fmt::format("resume  {} finished steps found", steps));
      }
    } else if (kind == "progress") {
      bar.show(event["done"], event["what"]);
    } else if (kind == "allocation") {
      for (const std::string& line : plan_lines(event)) bar.note(line);
    } else if (kind == "layer") {
      bar.note(layer_line(event));
    }
    return !interrupted();
  };
}

namespace {

struct Options {
  MixOptions mix;
  double size = 0;  // bytes; 0: not given
  Gate gate;
  bool json = false;
};

// The recipe, where none is given, and what --max-kl means.
Status settle(Options& o) {
  MixOptions& mix = o.mix;
  std::string& recipe = mix.compress.recipe;
  if (o.size != 0 && !(o.size >= 1 && o.size <= 1e18)) {
    return usage_error("--size is {} bytes", o.size);
  }
  mix.target.bytes = static_cast<uint64_t>(o.size);
  if (mix.target.bytes > 0 && mix.target.bpw > 0) {
    return usage_error("--size and --bits both bound the bytes; give one");
  }
  if (mix.compress.out.empty() && !mix.dry_run) return usage_error("--out is required");
  std::error_code ignored;
  const bool has_plan = !mix.plan.empty() && std::filesystem::exists(mix.plan, ignored);
  if (recipe.empty() && has_plan) {
    QUERN_ASSIGN(const Plan plan, read_plan(mix.plan));
    recipe = plan.recipe;
  } else if (recipe.empty()) {
    if (!mix.target.is_set() && o.gate.max_kl == 0) {
      return usage_error("--recipe is required, or --size, --bits, --max-kl or --plan");
    }
    if (!mix.target.is_set()) mix.target.kl = o.gate.max_kl;
    recipe = kMixRecipe;
  }
  mix.curves_folder = cache_folder();
  return {};
}

void print_result(const Options& o, const CompressResult& result) {
  if (o.json) return;
  for (const std::string& note : result.notes) fmt::print(stderr, "note    {}\n", note);
  fmt::print("{}: {}, {:.3f} bits per weight ({:.3f} in linear layers), {}\n", o.mix.compress.out,
             human_bytes(static_cast<double>(result.weight_bytes)), result.bpw, result.linear_bpw,
             human_seconds(result.seconds));
}

Error with_advice(Error problem) {
  if (problem.kind == ErrorKind::kCancelled) {
    problem.message = "stopped; the same command goes on from here";
  }
  return problem;
}

Status run_mix(const Options& o, ProgressBar& bar) {
  const auto result = compress_mix(o.mix);
  bar.clear();
  if (!result) return tl::unexpected(with_advice(result.error()));
  if (!result->is_compressed) return {};
  if (result->planned_kl >= 0) {
    const bool wins = result->planned_kl <= result->uniform_kl;
    if (o.json) {
      fmt::print("{}\n", Json{{"event", "check"},
                              {"planned_kl", result->planned_kl},
                              {"uniform_kl", result->uniform_kl},
                              {"written", wins ? "planned" : "uniform"}}
                             .dump());
    } else {
      fmt::print("held-out calibration text: KL {:.5f} planned, {:.5f} uniform; {}\n",
                 result->planned_kl, result->uniform_kl,
                 wins ? "the planned model is written" : "the UNIFORM model is written");
    }
  }
  print_result(o, result->compressed);
  return {};
}

}  // namespace

Action declare_compress(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CompressOptions& options = o->mix.compress;
  add_model(app, options.model);
  app.add_option("-o,--out", options.out, "folder to write");
  app.add_option("-r,--recipe", options.recipe, "recipe, or a .recipe file");
  add_calibration(app, options);
  app.add_flag("-f,--force", options.force, "replace the output folder if it exists");
  add_target(app, o->mix, o->size);
  add_gate(app, o->gate);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern compress models/tiny -o out --recipe 'rtn(int(8))'\n"
      "  quern compress models/tiny -o out --recipe 'rotate(rht) | ldlq(int(3, group=64))' \\\n"
      "      --calibration text.txt --nsamples 128\n"
      "  quern compress models/tiny -o out --recipe quern-3bit --max-kl 0.1\n"
      "  quern compress models/tiny -o out --size 1.8MB\n"
      "  quern compress models/tiny --bits 2.5 --dry-run --plan plan.json\n"
      "  quern compress models/tiny -o out --max-kl 0.02\n"
      "A run that was stopped goes on where it was when the same command is given again.");
  return [o]() -> Status {
    QUERN_TRY(settle(*o));
    ProgressBar bar(o->json);
    CompressOptions& options = o->mix.compress;
    options.observe = compress_observer(bar, o->json);
    o->mix.activations = o->gate.activations;
    const auto divergence = [&](const std::string& folder) {
      return measure(o->gate, options.model, folder, bar, o->json);
    };
    o->mix.divergence = [&](const std::string& folder) -> Result<double> {
      QUERN_ASSIGN(const Divergence measured, divergence(folder));
      return measured.kl;
    };
    if (o->gate.is_asked()) {
      options.accept = [&](const std::string& folder) -> Status {
        QUERN_ASSIGN(const Divergence measured, divergence(folder));
        return check(o->gate, measured);
      };
    }
    QUERN_ASSIGN(const bool is_mix, has_mix(options.recipe));
    if (is_mix) return run_mix(*o, bar);
    if (o->mix.target.is_set() || o->mix.dry_run || !o->mix.plan.empty()) {
      return usage_error("--size, --bits, --plan and --dry-run need a recipe with a mix, or none");
    }
    const auto result = compress(options);
    bar.clear();
    if (!result) return tl::unexpected(with_advice(result.error()));
    print_result(*o, *result);
    return {};
  };
}

}  // namespace quern::cli
