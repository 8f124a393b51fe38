// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "base/parallel.h"
#include "cli/command.h"
#include "eval/speed.h"
#include "kernels/kernels.h"
#include "model/synthetic.h"

namespace quern::cli {
namespace {

struct BenchOptions {
  std::string model, shape;
  SyntheticOptions synthetic;
  SpeedOptions speed;
  bool json = false;
};

Result<std::unique_ptr<Model>> open_or_make(const BenchOptions& o) {
  if (o.model.empty() == o.shape.empty()) {
    return usage_error("bench: give a MODEL or --shape NAME; the shapes are {}",
                       fmt::join(model_shapes(), ", "));
  }
  return o.shape.empty() ? Model::open(o.model) : synthetic_model(o.shape, o.synthetic);
}

Json to_json(const BenchOptions& o, const Model& model, const SpeedResult& speed) {
  const double reads_per_second =
      speed.generated.median() / static_cast<double>(o.speed.n_sequences);
  const auto bytes = static_cast<double>(model.bytes_per_token());
  return {{"model", valid_utf8(o.shape.empty() ? o.model : o.shape)},
          {"codec", codec_names(model)},
          {"isa", isa_name(kernels().isa)},
          {"threads", thread_count()},
          {"n_prompt", o.speed.n_prompt},
          {"n_gen", o.speed.n_generate},
          {"batch", o.speed.n_sequences},
          {"prompt_tokens_per_second", speed.prompt.median()},
          {"prompt_tokens_per_second_min", speed.prompt.min()},
          {"prompt_runs", speed.prompt.runs},
          {"generated_tokens_per_second", speed.generated.median()},
          {"generated_tokens_per_second_min", speed.generated.min()},
          {"generated_runs", speed.generated.runs},
          {"weight_bytes_per_token", bytes},
          {"weight_gb_per_second", bytes * reads_per_second / 1e9}};
}

void print_text(const Json& json) {
  fmt::print("{}  {}  {} threads, {}\n", json["model"].get<std::string>(),
             json["codec"].get<std::string>(), json["threads"].get<int>(),
             json["isa"].get<std::string>());
  fmt::print("prompt   {:6}       {:10.2f} tokens/s, slowest run {:.2f}\n",
             json["n_prompt"].get<int64_t>(), json["prompt_tokens_per_second"].get<double>(),
             json["prompt_tokens_per_second_min"].get<double>());
  fmt::print(
      "generate {:6} x {:<4}{:10.2f} tokens/s, slowest run {:.2f}; {} of weights a step, "
      "{:.2f} GB/s\n",
      json["n_gen"].get<int64_t>(), json["batch"].get<int64_t>(),
      json["generated_tokens_per_second"].get<double>(),
      json["generated_tokens_per_second_min"].get<double>(),
      human_bytes(json["weight_bytes_per_token"].get<double>()),
      json["weight_gb_per_second"].get<double>());
}

Status run_bench(const BenchOptions& o) {
  ProgressBar bar(o.json);
  SpeedOptions options = o.speed;
  options.proceed = [&](double done, std::string_view what) {
    bar.show(done, std::string(what));
    return !interrupted();
  };
  if (!o.shape.empty()) bar.show(0, "build " + o.shape);
  QUERN_ASSIGN(const auto model, open_or_make(o));
  QUERN_ASSIGN(const SpeedResult speed, measure_speed(*model, options));
  bar.clear();
  const Json json = to_json(o, *model, speed);
  if (o.json) {
    fmt::print("{}\n", json.dump());
  } else {
    print_text(json);
  }
  return {};
}

}  // namespace

Action declare_bench(CLI::App& app) {
  const auto o = std::make_shared<BenchOptions>();
  app.add_option("MODEL,-m,--model", o->model, "Hugging Face folder or GGUF file");
  app.add_option("--shape", o->shape,
                 fmt::format("in place of MODEL: random weights of the shape {}",
                             fmt::join(model_shapes(), ", ")));
  app.add_option("--codec", o->synthetic.codec,
                 "of the layers of --shape: 'int(4, group=64)', f32, f16, bf16; default: f16");
  app.add_option("--head-codec", o->synthetic.head_codec,
                 "of the embedding and head of --shape; default: as --codec");
  app.add_option("-p,--n-prompt", o->speed.n_prompt, "prompt tokens")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("-n,--n-gen", o->speed.n_generate, "generated tokens of a sequence")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("-b,--batch", o->speed.n_sequences, "sequences decoded at once")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("-r,--repetitions", o->speed.repetitions, "runs; the median counts")
      ->check(CLI::Range(1, 1000));
  app.add_option("-s,--seed", o->speed.seed, "seed of the random prompt");
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern bench models/tiny -p 512 -n 64 -r 3 --json\n"
      "  quern bench --shape tinyllama --codec 'int(4, group=64)' --head-codec 'int(8)' -p 128\n"
      "  quern bench --shape llama-7b --codec e8p --batch 8 -p 16 -n 16 -r 1");
  return [o] { return run_bench(*o); };
}

}  // namespace quern::cli
