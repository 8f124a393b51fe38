// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "base/parallel.h"
#include "cli/command.h"
#include "eval/roofline.h"
#include "eval/speed.h"
#include "kernels/kernels.h"
#include "model/synthetic.h"
#include "recipe/recipe.h"

namespace quern::cli {
namespace {

struct BenchOptions {
  std::string model, shape, transform, kv_calibration;
  SyntheticOptions synthetic;
  SpeedOptions speed;
  bool roofline = false, json = false;
};

// The basis of the recipe's transforms, which may not need data.
Result<BasisChange> plan_basis(const std::string& text, const std::string& shape, uint64_t seed) {
  QUERN_ASSIGN(const ModelDesc desc, shape_desc(shape));
  QUERN_ASSIGN(const Recipe recipe, Recipe::parse(text));
  QUERN_ASSIGN(const std::vector<spec::Stage> stages, spec::parse_recipe(text));
  if (recipe.transforms().size() != stages.size()) {
    return usage_error("bench: --transform takes transforms alone, got '{}'", text);
  }
  BasisChange basis;
  std::vector<std::string> notes;
  for (const auto& transform : recipe.transforms()) {
    if (transform->is_fitted()) {
      return usage_error("bench: {} is fitted to data, and a shape has none", transform->spec());
    }
    QUERN_TRY(transform->plan(desc, seed, basis, notes));
  }
  return basis;
}

Result<std::unique_ptr<Model>> open_or_make(const BenchOptions& o) {
  if (o.model.empty() == o.shape.empty()) {
    return usage_error(
        "bench: give a MODEL or --shape NAME, or --roofline alone; the shapes are {}",
        fmt::join(model_shapes(), ", "));
  }
  if (o.shape.empty()) {
    if (!o.transform.empty()) return usage_error("bench: --transform goes with --shape");
    return Model::open(o.model, o.synthetic.activations);
  }
  SyntheticOptions options = o.synthetic;
  options.n_context = o.speed.depth + o.speed.n_prompt + o.speed.n_generate;
  if (!o.transform.empty()) {
    QUERN_ASSIGN(options.basis, plan_basis(o.transform, o.shape, options.seed));
  }
  return synthetic_model(o.shape, options);
}

// Random weights have nothing that a cache could be planned for or fitted to.
Status check_cache_of_shape(const KvCacheRecipe& kv) {
  if (kv.mix) return usage_error("bench: {} is planned for a MODEL, not for a shape", kv.text);
  for (const auto& kept : kv.all()) {
    if (!kept->has_tables() && !kept->has_trained()) continue;
    return usage_error(
        "bench: {} needs tables of a MODEL, and a shape has none: give a MODEL, with tables by "
        "quern calibrate-kv or by training",
        kept->text);
  }
  return {};
}

Json to_json(const Limit& limit) {
  return {{"one_thread", limit.one_thread / 1e9}, {"all_threads", limit.all_threads / 1e9}};
}

Json to_json(const Roofline& roofline) {
  Json json = {{"read_gb_per_second", to_json(roofline.read)},
               {"copy_gb_per_second", to_json(roofline.copy)},
               {"peak_gop_per_second", Json::object()}};
  for (const Limit& peak : roofline.peaks) json["peak_gop_per_second"][peak.name] = to_json(peak);
  return json;
}

// As the model says, or where it does not, as the reader chose.
std::string activations_text(const BenchOptions& o, const Model& model) {
  const std::string acts = act_names(model);
  if (!acts.empty()) return acts;
  return std::string(activations_name(o.synthetic.activations));
}

Json to_json(const BenchOptions& o, const Model& model, const SpeedResult& speed) {
  const double reads_per_second =
      speed.generated.median() / static_cast<double>(o.speed.n_sequences);
  const auto bytes = static_cast<double>(model.bytes_per_token());
  // While attention runs.
  const double attention = speed.generated.median_attention() / speed.generated.median();
  const double kv_rate =
      attention > 0 ? static_cast<double>(speed.kv_bytes_per_token) / attention / 1e9 : 0;
  return {{"model", valid_utf8(o.shape.empty() ? o.model : o.shape)},
          {"codec", codec_names(model)},
          {"activations", activations_text(o, model)},
          {"kv", o.speed.kv.text},
          {"isa", isa_name(best_isa())},
          {"threads", thread_count()},
          {"kv_bytes", speed.kv_bytes},
          {"depth", o.speed.depth},
          {"n_prompt", o.speed.n_prompt},
          {"n_gen", o.speed.n_generate},
          {"batch", o.speed.n_sequences},
          {"prompt_tokens_per_second", speed.prompt.median()},
          {"prompt_tokens_per_second_min", speed.prompt.min()},
          {"prompt_runs", speed.prompt.runs},
          {"prompt_online_share", speed.prompt.median_online()},
          {"generated_tokens_per_second", speed.generated.median()},
          {"generated_tokens_per_second_min", speed.generated.min()},
          {"generated_runs", speed.generated.runs},
          {"generated_online_share", speed.generated.median_online()},
          {"generated_attention_share", speed.generated.median_attention()},
          {"kv_bytes_per_token", speed.kv_bytes_per_token},
          {"kv_gb_per_second", kv_rate},
          {"weight_bytes_per_token", bytes},
          {"weight_gb_per_second", bytes * reads_per_second / 1e9}};
}

// The limit over a prompt: that of the instructions which multiply most of the weights. Coded ones
// may be multiplied as integers, dense ones never are.
std::string prompt_peak(const Model& model) {
  double integers = 0, pairs = 0, floats = 0;
  model.for_each_linear([&](const LinearWeight& weight) {
    (weight.is_int8()   ? integers
     : weight.is_bf16() ? pairs
                        : floats) += static_cast<double>(weight.n_out * weight.n_in);
  });
  const bool is_int8 = integers > pairs + floats;
  if (is_int8 && best_isa() == Isa::kAmx) return "int8_amx";
  if (is_int8 && best_isa() == Isa::kAvx512) return "int8_vnni";
  if (pairs > floats && best_isa() == Isa::kAmx) return "bf16_amx";
  return fmt::format("fp32_{}", isa_name(kernels().isa));
}

// Of what the machine read and multiplied at best, minutes before.
void add_shares(const BenchOptions& o, const Model& model, const SpeedResult& speed,
                const Roofline& roofline, Json& json) {
  const WeightWork work = weight_work(model);
  const auto n = static_cast<double>(o.speed.n_prompt);
  const double operations = 2 * (work.per_token + work.per_head / n) * speed.prompt.median();
  const std::string peak = prompt_peak(model);
  json["bandwidth_share"] =
      json["weight_gb_per_second"].get<double>() * 1e9 / roofline.read.all_threads;
  json["prompt_peak"] = peak;
  json["prompt_peak_share"] = operations / roofline.peak(peak)->all_threads;
  json["roofline"] = to_json(roofline);
}

void print_text(const Roofline& roofline) {
  fmt::print("{:14} {:>10} {:>10}\n", "limit", "one thread",
             fmt::format("{} threads", thread_count()));
  for (const Limit* limit : {&roofline.read, &roofline.copy}) {
    fmt::print("{:14} {:10.1f} {:10.1f}  GB/s\n", limit->name, limit->one_thread / 1e9,
               limit->all_threads / 1e9);
  }
  for (const Limit& peak : roofline.peaks) {
    fmt::print("{:14} {:10.1f} {:10.1f}  Gop/s\n", peak.name, peak.one_thread / 1e9,
               peak.all_threads / 1e9);
  }
}

void print_text(const Json& json) {
  fmt::print("{}  {}  {} threads, {}\n", json["model"].get<std::string>(),
             json["codec"].get<std::string>(), json["threads"].get<int>(),
             json["isa"].get<std::string>());
  const auto share = [&](const char* key, const std::string& of) {
    return json.contains(key) ? fmt::format(", {:.0f} % of {}", 100 * json[key].get<double>(), of)
                              : std::string();
  };
  const auto online = [&](const char* key) {
    const double part = json[key].get<double>();
    return part > 0 ? fmt::format(", {:.2f} % in online operators", 100 * part) : std::string();
  };
  if (json["depth"].get<int64_t>() > 0) {
    const double milliseconds = 1e3 / json["generated_tokens_per_second"].get<double>();
    fmt::print("behind   {:6} tokens, cache {}, {}\n", json["depth"].get<int64_t>(),
               json["kv"].get<std::string>(), human_bytes(json["kv_bytes"].get<double>()));
    fmt::print("attention{:13.2f} ms of {:.2f} ms a token; {} of the cache, {:.2f} GB/s\n",
               milliseconds * json["generated_attention_share"].get<double>(), milliseconds,
               human_bytes(json["kv_bytes_per_token"].get<double>()),
               json["kv_gb_per_second"].get<double>());
  }
  fmt::print("prompt   {:6}       {:10.2f} tokens/s, slowest run {:.2f}{}{}\n",
             json["n_prompt"].get<int64_t>(), json["prompt_tokens_per_second"].get<double>(),
             json["prompt_tokens_per_second_min"].get<double>(),
             share("prompt_peak_share", json.value("prompt_peak", "")),
             online("prompt_online_share"));
  fmt::print(
      "generate {:6} x {:<4}{:10.2f} tokens/s, slowest run {:.2f}; {} of weights a step, "
      "{:.2f} GB/s{}{}\n",
      json["n_gen"].get<int64_t>(), json["batch"].get<int64_t>(),
      json["generated_tokens_per_second"].get<double>(),
      json["generated_tokens_per_second_min"].get<double>(),
      human_bytes(json["weight_bytes_per_token"].get<double>()),
      json["weight_gb_per_second"].get<double>(), share("bandwidth_share", "read"),
      online("generated_online_share"));
}

Status run_bench(BenchOptions o) {
  ProgressBar bar(o.json);
  const auto proceed = [&](double done, std::string_view what) {
    bar.show(done, std::string(what));
    return !interrupted();
  };
  Roofline roofline;
  if (o.roofline) {
    RooflineOptions options;
    options.proceed = proceed;
    QUERN_ASSIGN(roofline, measure_roofline(options));
    bar.clear();
    if (!o.json) print_text(roofline);
    if (o.model.empty() && o.shape.empty()) {
      if (o.json) fmt::print("{}\n", Json{{"roofline", to_json(roofline)}}.dump());
      return {};
    }
  }
  if (!o.shape.empty()) {
    QUERN_TRY(check_cache_of_shape(o.speed.kv));
    bar.show(0, "build " + o.shape);
  }
  QUERN_ASSIGN(const auto model, open_or_make(o));
  QUERN_TRY(
      plan_cache(*model, o.kv_calibration, o.json ? Output::kQuiet : Output::kText, o.speed.kv));
  o.speed.proceed = proceed;
  QUERN_ASSIGN(const SpeedResult speed, measure_speed(*model, o.speed));
  bar.clear();
  Json json = to_json(o, *model, speed);
  if (o.roofline) add_shares(o, *model, speed, roofline, json);
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
  app.add_option("--act", o->synthetic.act,
                 "how coded layers of --shape round their inputs: 'int(8)'; default: as "
                 "--activations says");
  app.add_option("--transform", o->transform,
                 "of --shape, without data: 'rotate'; its online operators run, and their share of "
                 "the time is reported");
  app.add_flag("--roofline", o->roofline,
               "first measure the machine's limits, and report shares of them");
  app.add_option("-p,--n-prompt", o->speed.n_prompt, "prompt tokens")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("-n,--n-gen", o->speed.n_generate, "generated tokens of a sequence")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("-d,--depth", o->speed.depth, "tokens in the cache before the prompt")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("-b,--batch", o->speed.n_sequences, "sequences decoded at once")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("-r,--repetitions", o->speed.repetitions, "runs; the median counts")
      ->check(CLI::Range(1, 1000));
  app.add_option("-s,--seed", o->speed.seed, "seed of the random prompt");
  add_activations(app, o->synthetic.activations);
  add_kv(app, o->synthetic.activations, o->speed.kv, o->kv_calibration);
  add_threads(app);
  add_json(app, o->json);
  app.footer(
      "Examples:\n"
      "  quern bench --roofline\n"
      "  quern bench models/tiny -p 512 -n 64 -r 3 --json\n"
      "  quern bench --shape tinyllama --codec 'int(4, group=64)' --head-codec 'int(8)' "
      "--roofline\n"
      "  quern bench --shape tinyllama --codec 'int(4)' --transform 'rotate'\n"
      "  quern bench --shape llama-7b --codec e8p --batch 8 -p 16 -n 16 -r 1");
  return [o] { return run_bench(*o); };
}

}  // namespace quern::cli
