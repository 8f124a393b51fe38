// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <memory>

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

Status measure(const Gate& gate, const std::string& original, const std::string& folder,
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
  const double kl = results[0].kl_mean, ratio = results[0].ppl / results[1].ppl;
  if (json) {
    fmt::print("{}\n", Json{{"event", "measured"}, {"kl_mean", kl}, {"ppl_ratio", ratio}}.dump());
    std::fflush(stdout);
  } else {
    bar.note(fmt::format("measured  KL {:.5f}, perplexity x {:.4f}, {} tokens", kl, ratio,
                         results[0].n_tokens));
  }
  // So that NaN is refused too.
  if (gate.max_kl > 0 && !(kl <= gate.max_kl)) {
    return error("the result diverges by {:.5f} nats per token, more than --max-kl {}", kl,
                 gate.max_kl);
  }
  if (gate.max_ppl_ratio > 0 && !(ratio <= gate.max_ppl_ratio)) {
    return error("the result has {:.4f} times the perplexity, more than --max-ppl-ratio {}", ratio,
                 gate.max_ppl_ratio);
  }
  return {};
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
    } else if (kind == "layer") {
      bar.note(layer_line(event));
    }
    return !interrupted();
  };
}

Action declare_compress(CLI::App& app) {
  struct Options {
    CompressOptions compress;
    Gate gate;
    bool json = false;
  };
  const auto o = std::make_shared<Options>();
  add_model(app, o->compress.model);
  app.add_option("-o,--out", o->compress.out, "folder to write")->required();
  app.add_option("-r,--recipe", o->compress.recipe, "recipe, or a .recipe file")->required();
  add_calibration(app, o->compress);
  app.add_flag("-f,--force", o->compress.force, "replace the output folder if it exists");
  add_gate(app, o->gate);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern compress models/tiny -o out --recipe 'rtn(int(8))'\n"
      "  quern compress models/tiny -o out --recipe 'rotate(rht) | ldlq(int(3, group=64))' \\\n"
      "      --calibration text.txt --nsamples 128\n"
      "  quern compress models/tiny -o out --recipe quern-3bit --max-kl 0.1\n"
      "A run that was stopped goes on where it was when the same command is given again.");
  return [o]() -> Status {
    ProgressBar bar(o->json);
    o->compress.observe = compress_observer(bar, o->json);
    if (o->gate.is_asked()) {
      o->compress.accept = [&](const std::string& folder) {
        return measure(o->gate, o->compress.model, folder, bar, o->json);
      };
    }
    const auto result = compress(o->compress);
    bar.clear();
    if (!result) {
      Error problem = result.error();
      if (problem.kind == ErrorKind::kCancelled) {
        problem.message = "stopped; the same command goes on from here";
      }
      return tl::unexpected(problem);
    }
    if (o->json) return {};
    for (const std::string& note : result->notes) fmt::print(stderr, "note    {}\n", note);
    fmt::print("{}: {}, {:.3f} bits per weight ({:.3f} in linear layers), {}\n", o->compress.out,
               human_bytes(static_cast<double>(result->weight_bytes)), result->bpw,
               result->linear_bpw, human_seconds(result->seconds));
    return {};
  };
}

}  // namespace quern::cli
