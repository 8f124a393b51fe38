// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "eval/inputs.h"
#include "report/tensor_costs.h"

namespace quern::cli {
namespace {

// The size of the weights where coded matrices are in the form the runtime reads them in. Makes
// each form and drops it.
Result<uint64_t> runtime_bytes(const ModelFiles& files) {
  uint64_t bytes = files.weight_bytes();
  for (const WeightId& id : files.store().weight_ids()) {
    const PackedTensor* stored = files.store().coded(id);
    if (stored == nullptr) continue;
    QUERN_ASSIGN(const LinearWeight weight, files.linear(id));
    if (weight.codec == stored->codec.get()) continue;
    QUERN_ASSIGN(const auto planes, stored->codec->planes(stored->n_out, stored->n_in));
    bytes += weight.n_bytes();
    for (const PlaneSpec& plane : planes) bytes -= plane.n_bytes();
  }
  return bytes;
}

void print_rows(const ModelFiles& files, const std::vector<TensorCost>& rows, uint64_t in_memory) {
  const Packed& packed = files.packed();
  if (!packed.empty()) {
    fmt::print("recipe       {}\n", packed.recipe);
    fmt::print("seed         {}\n", packed.seed);
    Json calibration = packed.calibration;
    if (calibration.is_object()) calibration.erase("runs");  // a page of digits
    fmt::print("calibration  {}\n", calibration.empty() ? "none" : calibration.dump());
    fmt::print("source       {}\n", packed.source_digest);
    fmt::print("written by   quern {}\n", packed.quern_version);
  }
  const bool has_act =
      std::any_of(rows.begin(), rows.end(), [](const TensorCost& row) { return !row.act.empty(); });
  fmt::print("{:56} {:>28} {:>12} {:>8} {:>10}{}\n", "tensor", "kind", "bytes", "bpw", "error",
             has_act ? "  inputs" : "");
  uint64_t total = 0;
  for (const TensorCost& row : rows) {
    fmt::print("{:56} {:>28} {:>12} {:>8.3f} {:>10}{}{}\n", row.name, row.kind, row.bytes,
               row.bpw(), row.error >= 0 ? fmt::format("{:.3e}", row.error) : "",
               row.act.empty() ? "" : "  ", row.act);
    total += row.bytes;
  }
  fmt::print("{:56} {:>28} {:>12}\n", "headers", "", files.weight_bytes() - total);
  fmt::print("{:56} {:>28} {:>12} {:>8.3f}\n", "total", "", files.weight_bytes(), files.bpw());
  if (in_memory == files.weight_bytes()) return;
  fmt::print("{:56} {:>28} {:>12} {:>8.3f}\n", "in memory", "", in_memory,
             8.0 * static_cast<double>(in_memory) / static_cast<double>(files.n_params()));
}

// Statistics of what matrices read while a text passes.
struct InputsOptions {
  std::string text, acts = "int(8); int(4)";
  EvalOptions eval;
};

Result<std::vector<std::shared_ptr<const ActQuantizer>>> parse_acts(std::string text) {
  std::vector<std::shared_ptr<const ActQuantizer>> acts;
  std::replace(text.begin(), text.end(), ';', '|');  // the grammar of stages
  QUERN_ASSIGN(const std::vector<spec::Stage> stages, spec::parse_recipe(text));
  for (const spec::Stage& stage : stages) {
    QUERN_ASSIGN(std::shared_ptr<const ActQuantizer> act, make_act(stage.call));
    acts.push_back(std::move(act));
  }
  return acts;
}

Json to_json(const InputStatistics& s, const InputOptions& options) {
  Json losses = Json::array();
  for (size_t a = 0; a < options.acts.size(); ++a) {
    losses.push_back({{"act", options.acts[a]->spec()},
                      {"zeros", s.losses[a].zeros},
                      {"error", s.losses[a].error}});
  }
  return {{"layer", s.layer},           {"input", input_name(s.role)},
          {"rows", s.n_rows},           {"width", s.n_in},
          {"max_abs", s.max_abs},       {"rms", s.rms},
          {"token_peak", s.token_peak}, {"channel_peak", s.channel_peak},
          {"losses", std::move(losses)}};
}

void print_inputs(const std::vector<InputStatistics>& rows, const InputOptions& options) {
  fmt::print("{:>5} {:12} {:>10} {:>10} {:>9} {:>8} {:>8}", "layer", "input", "max|x|", "rms",
             "max/rms", "token", "channel");
  for (const auto& act : options.acts) fmt::print("  {:>20}", act->spec());
  fmt::print("\n{:69}", "");
  for (size_t a = 0; a < options.acts.size(); ++a) fmt::print("  {:>9} {:>10}", "zeros", "error");
  fmt::print("\n");
  for (const InputStatistics& s : rows) {
    fmt::print("{:>5} {:12} {:>10.4g} {:>10.4g} {:>9.1f} {:>8.1f} {:>8.1f}", s.layer,
               input_name(s.role), s.max_abs, s.rms, s.rms > 0 ? s.max_abs / s.rms : 0,
               s.token_peak, s.channel_peak);
    for (const RoundingLoss& loss : s.losses) {
      fmt::print("  {:>7.2f} % {:>10.3e}", 100 * loss.zeros, loss.error);
    }
    fmt::print("\n");
  }
  fmt::print(
      "max/rms: of all values; token: mean over tokens of max|x| / rms; channel: the largest "
      "max|x| "
      "of a channel over their median;\nzeros: values that are rounded to zero; error: "
      "|x - x_hat|^2 / |x|^2.\n");
}

Status inspect_inputs(const std::string& path, const InputsOptions& o, bool as_json) {
  InputOptions options;
  QUERN_ASSIGN(options.acts, parse_acts(o.acts));
  QUERN_ASSIGN(const std::string text, evaluation_text(o.text));
  QUERN_ASSIGN(const auto model, Model::open(path));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(path));
  EvalOptions eval = o.eval;
  eval.n_ctx = std::min(eval.n_ctx, model->desc().n_context);
  QUERN_ASSIGN(const auto windows, window_inputs(model->desc(), tokenizer->tokenize(text), eval));
  ProgressBar bar(as_json);
  options.proceed = [&](double done) {
    bar.show(done, "run");
    return !interrupted();
  };
  QUERN_ASSIGN(const auto rows, measure_inputs(*model, windows, options));
  bar.clear();
  if (!as_json) {
    print_inputs(rows, options);
    return {};
  }
  Json list = Json::array();
  for (const InputStatistics& row : rows) list.push_back(to_json(row, options));
  fmt::print("{}\n", Json{{"inputs", std::move(list)}}.dump(1));
  return {};
}

}  // namespace

Action declare_inspect(CLI::App& app) {
  struct Options {
    std::string model;
    InputsOptions inputs;
    bool with_inputs = false, json = false;
  };
  const auto o = std::make_shared<Options>();
  add_model(app, o->model);
  add_json(app, o->json);
  app.add_flag("--inputs", o->with_inputs,
               "in place of tensors: what matrices read while a text passes, how uneven it is, and "
               "what rounding it would cost");
  app.add_option("--act", o->inputs.acts, "with --inputs: quantizers to try, split by ';'")
      ->capture_default_str();
  add_evaluation(app, o->inputs.text, o->inputs.eval);
  add_threads(app);
  app.footer("Example:\n  quern inspect models/tiny --inputs --ctx 256 --windows 8");
  return [o]() -> Status {
    if (o->with_inputs) return inspect_inputs(o->model, o->inputs, o->json);
    QUERN_ASSIGN(const auto files, ModelFiles::open(o->model));
    const std::vector<TensorCost> rows = tensor_costs(*files);
    QUERN_ASSIGN(const uint64_t in_memory, runtime_bytes(*files));
    if (!o->json) {
      const ModelDesc& model = files->desc();
      fmt::print("{}: {}, {} layers, d_model {}, {} parameters\n", o->model, model.arch,
                 model.layers.size(), model.d_model, files->n_params());
      if (files->n_stored_params() != files->n_params()) {
        fmt::print(
            "stored: {} parameters, {:.3f} of the original\n", files->n_stored_params(),
            static_cast<double>(files->n_stored_params()) / static_cast<double>(files->n_params()));
      }
      print_rows(*files, rows, in_memory);
      return {};
    }
    Json list = Json::array();
    for (const TensorCost& row : rows) {
      Json item = {
          {"name", row.name}, {"kind", row.kind}, {"weights", row.n_weights}, {"bytes", row.bytes}};
      if (row.error >= 0) item["error"] = row.error;
      if (!row.act.empty()) item["act"] = row.act;
      list.push_back(std::move(item));
    }
    Json json = {{"arch", files->desc().arch},
                 {"params", files->n_params()},
                 {"stored_params", files->n_stored_params()},
                 {"bytes", files->weight_bytes()},
                 {"bpw", files->bpw()},
                 {"linear_bpw", files->linear_bpw()},
                 {"runtime_bytes", in_memory},
                 {"tensors", std::move(list)}};
    if (!files->packed().empty()) {
      json["quantization"] = files->packed().to_json();
      json["quantization"].erase("tensors");
    }
    fmt::print("{}\n", json.dump(1));
    return {};
  };
}

}  // namespace quern::cli
