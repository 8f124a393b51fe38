// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "base/parallel.h"
#include "cli/command.h"
#include "eval/speed.h"
#include "kernels/kernels.h"

namespace quern::cli {

Action declare_bench(CLI::App& app) {
  struct Options {
    std::string model;
    SpeedOptions speed;
    bool json = false;
  };
  const auto o = std::make_shared<Options>();
  add_model(app, o->model);
  app.add_option("-p,--n-prompt", o->speed.n_prompt, "prompt tokens")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("-n,--n-gen", o->speed.n_generate, "generated tokens")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("-r,--repetitions", o->speed.repetitions, "runs; the median counts")
      ->check(CLI::Range(1, 1000));
  app.add_option("-s,--seed", o->speed.seed, "seed of the random prompt");
  add_threads(app);
  add_json(app, o->json);
  app.footer("Example:\n  quern bench models/tiny -p 512 -n 64 -r 3 --json");
  return [o]() -> Status {
    QUERN_ASSIGN(const auto model, Model::open(o->model));
    QUERN_ASSIGN(const SpeedResult speed, measure_speed(*model, o->speed));
    const double gb_per_second =
        static_cast<double>(speed.bytes_per_token) * speed.generated_median / 1e9;
    if (o->json) {
      const Json json = {{"model", valid_utf8(o->model)},
                         {"n_prompt", o->speed.n_prompt},
                         {"n_gen", o->speed.n_generate},
                         {"prompt_tokens_per_second", speed.prompt_median},
                         {"generated_tokens_per_second", speed.generated_median},
                         {"prompt_runs", speed.prompt},
                         {"generated_runs", speed.generated},
                         {"weight_bytes_per_token", speed.bytes_per_token},
                         {"weight_gb_per_second", gb_per_second},
                         {"threads", thread_count()},
                         {"isa", isa_name(kernels().isa)}};
      fmt::print("{}\n", json.dump());
      return {};
    }
    fmt::print("{}  {} threads, {}\n", o->model, thread_count(), isa_name(kernels().isa));
    fmt::print("pp{:<6} {:10.1f} tokens/s\n", o->speed.n_prompt, speed.prompt_median);
    fmt::print("tg{:<6} {:10.1f} tokens/s, {:.2f} GB/s of weights\n", o->speed.n_generate,
               speed.generated_median, gb_per_second);
    return {};
  };
}

}  // namespace quern::cli
