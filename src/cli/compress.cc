// SPDX-License-Identifier: Apache-2.0
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
    bool json = false;
  };
  const auto o = std::make_shared<Options>();
  add_model(app, o->compress.model);
  app.add_option("-o,--out", o->compress.out, "folder to write")->required();
  app.add_option("-r,--recipe", o->compress.recipe, "recipe, or a .recipe file")->required();
  add_calibration(app, o->compress);
  app.add_flag("-f,--force", o->compress.force, "replace the output folder if it exists");
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern compress models/tiny -o out --recipe 'rtn(int(8))'\n"
      "  quern compress models/tiny -o out --recipe 'rotate(rht) | ldlq(int(3, group=64))' \\\n"
      "      --calibration text.txt --nsamples 128\n"
      "A run that was stopped goes on where it was when the same command is given again.");
  return [o]() -> Status {
    ProgressBar bar(o->json);
    o->compress.observe = compress_observer(bar, o->json);
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
