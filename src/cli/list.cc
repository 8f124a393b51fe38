// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "activations/act_quantizer.h"
#include "cli/command.h"
#include "codecs/codec.h"
#include "codecs/measure.h"
#include "kvcache/kv_recipe.h"
#include "model/archs/arch.h"
#include "model/fuse.h"
#include "model/model_files.h"
#include "model/synthetic.h"
#include "recipe/presets.h"
#include "solvers/solver.h"
#include "transforms/transform.h"

namespace quern::cli {
namespace {

Json params_json(spec::ParamSpecs params) {
  Json list = Json::array();
  for (const spec::ParamSpec& param : params) {
    list.push_back({{"name", param.name},
                    {"default", param.fallback},
                    {"accepts", spec::describe({&param, 1})},
                    {"help", param.help}});
  }
  return list;
}

template <class Rows>
Json rows_json(const Rows& rows) {
  Json list = Json::array();
  for (const auto& row : rows) {
    list.push_back(
        {{"name", row.name}, {"summary", row.summary}, {"params", params_json(row.params)}});
  }
  return list;
}

Json everything() {
  Json archs_json = Json::array();
  for (const Arch& arch : archs()) {
    archs_json.push_back(
        {{"name", arch.name},
         {"summary", arch.architectures.empty() ? "" : std::string(arch.architectures[0])},
         {"params", Json::array()}});
  }
  Json recipes_json = Json::array();
  for (const RecipePreset& preset : recipe_presets()) {
    recipes_json.push_back({{"name", preset.name},
                            {"summary", preset.summary()},
                            {"text", preset.text},
                            {"params", Json::array()}});
  }
  Json caches_json = Json::array();
  for (const KvPreset& preset : kv_presets()) {
    caches_json.push_back({{"name", preset.name},
                           {"summary", preset.summary},
                           {"text", preset.text},
                           {"params", Json::array()}});
  }
  return {{"codecs", rows_json(codecs())},
          {"transforms", rows_json(transforms())},
          {"activations", rows_json(act_quantizers())},
          {"solvers", rows_json(solvers())},
          {"recipes", std::move(recipes_json)},
          {"kv", rows_json(kv_codecs())},
          {"policies", rows_json(kv_policies())},
          {"merges", rows_json(kv_merges())},
          {"caches", std::move(caches_json)},
          {"architectures", std::move(archs_json)}};
}

// What a transform at its defaults leaves online in a model.
Json cost_json(const TransformInfo& info, const ModelDesc& model) {
  const auto call = spec::parse_call(info.name);
  const auto params = call ? spec::Params::bind(*call, info.params)
                           : Result<spec::Params>(tl::unexpected(call.error()));
  if (!params) return {{"reason", params.error().message}};
  const auto transform = info.make(*params);
  if (!transform) return {{"reason", transform.error().message}};
  BasisChange basis;
  std::vector<std::string> notes;
  const Status planned = (*transform)->plan(model, 0, basis, notes);
  if (!planned) return {{"reason", planned.error().message}};
  const OnlineCost cost = online_cost(basis, model);
  return {{"online_flops", cost.flops},
          {"online_bytes", cost.bytes},
          {"fitted", (*transform)->is_fitted()},
          {"notes", notes}};
}

Status add_costs(const std::string& model, Json& rows) {
  const auto shape = shape_desc(model);
  ModelDesc desc;
  if (shape) {
    desc = *shape;
  } else {
    QUERN_ASSIGN(const auto files, ModelFiles::open(model));
    desc = files->desc();
  }
  for (Json& row : rows) {
    row["cost"] = cost_json(*find_transform(row["name"].get<std::string>()), desc);
  }
  return {};
}

void print_cost(const Json& cost) {
  if (cost.contains("reason")) {
    fmt::print("  {:18}   {}\n", "", cost["reason"].get<std::string>());
    return;
  }
  fmt::print("  {:18}   online: {} operations and {} bytes a token{}\n", "",
             cost["online_flops"].get<int64_t>(), cost["online_bytes"].get<int64_t>(),
             cost["fitted"].get<bool>() ? ", and what is fitted and does not fold" : "");
}

// Codes Gaussian numbers with the named codec, or with every example of every codec.
Status list_measures(const std::string& spec, int64_t size, bool as_json, bool as_csv) {
  std::vector<std::string> specs;
  if (!spec.empty()) {
    specs.push_back(spec);
  } else {
    for (const CodecInfo& info : codecs()) {
      for (const std::string_view example : info.examples) specs.emplace_back(example);
    }
  }
  Json list = Json::array();
  if (as_csv) {
    fmt::print("codec,bits,mse,gap_db,encode_weights_per_second,decode_weights_per_second\n");
  } else if (!as_json) {
    fmt::print("{:44} {:>7} {:>9} {:>6} {:>10} {:>10}\n", "codec", "bits", "mse", "gap dB",
               "encode/s", "decode/s");
  }
  for (const std::string& text : specs) {
    QUERN_ASSIGN(const auto codec, make_codec(text));
    QUERN_ASSIGN(const spec::Call call, spec::parse_call(codec->spec()));
    QUERN_ASSIGN(const CodecMeasure m, measure(*codec, {size, size}));
    const auto info = std::find_if(codecs().begin(), codecs().end(),
                                   [&](const CodecInfo& row) { return row.name == call.name; });
    Json params = Json::object();
    for (size_t i = 0; i < call.args.size(); ++i) {
      const spec::Arg& arg = call.args[i];  // without a name: the parameter of its position
      params[arg.name.empty() ? std::string(info->params[i].name) : arg.name] = print(arg.value);
    }
    list.push_back({{"name", call.name},
                    {"spec", codec->spec()},
                    {"params", std::move(params)},
                    {"bits", m.bits},
                    {"mse", m.mse},
                    {"gap_db", m.gap_db},
                    {"encode_weights_per_second", m.encode_weights_per_second},
                    {"decode_weights_per_second", m.decode_weights_per_second}});
    if (as_json) continue;
    if (as_csv) {
      fmt::print("\"{}\",{:.6f},{:.7f},{:.3f},{:.3g},{:.3g}\n", codec->spec(), m.bits, m.mse,
                 m.gap_db, m.encode_weights_per_second, m.decode_weights_per_second);
    } else {
      fmt::print("{:44} {:7.4f} {:9.6f} {:6.2f} {:8.2f} M {:8.0f} M\n", codec->spec(), m.bits,
                 m.mse, m.gap_db, m.encode_weights_per_second / 1e6,
                 m.decode_weights_per_second / 1e6);
    }
    std::fflush(stdout);
  }
  if (as_json) fmt::print("{}\n", list.dump(1));
  return {};
}

}  // namespace

Action declare_list(CLI::App& app) {
  struct Options {
    std::string what;
    bool json = false;
    bool measure = false;
    bool csv = false;
    std::string spec, model;
    int64_t size = 1024;
  };
  const auto o = std::make_shared<Options>();
  app.add_option(
         "WHAT", o->what,
         "codecs, transforms, activations, solvers, recipes, kv (codecs of caches), policies (of "
         "eviction), merges (rules of merging), caches or architectures; default: all")
      ->check(CLI::IsMember({"codecs", "transforms", "activations", "solvers", "recipes", "kv",
                             "policies", "merges", "caches", "architectures"}));
  app.add_flag("--measure", o->measure,
               "code Gaussian numbers with every codec: bits, error, speed");
  app.add_option("--codec", o->spec, "measure this codec alone, as 'int(4, group=64)'");
  app.add_option("--size", o->size, "rows and columns of the matrix that is measured")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 15))
      ->capture_default_str();
  app.add_option("--model", o->model,
                 "a model or the name of a shape: the cost of each transform in it");
  app.add_flag("--csv", o->csv, "comma-separated measures");
  add_json(app, o->json);
  return [o]() -> Status {
    if (o->measure || !o->spec.empty()) return list_measures(o->spec, o->size, o->json, o->csv);
    Json all = everything();
    if (!o->model.empty()) QUERN_TRY(add_costs(o->model, all["transforms"]));
    if (o->json) {
      fmt::print("{}\n", (o->what.empty() ? all : all[o->what]).dump(1));
      return {};
    }
    for (const auto& [kind, rows] : all.items()) {
      if (!o->what.empty() && o->what != kind) continue;
      fmt::print("{}\n", kind);
      for (const Json& row : rows) {
        fmt::print("  {:18} {}\n", row["name"].get<std::string>(),
                   row["summary"].get<std::string>());
        if (row.contains("cost")) print_cost(row["cost"]);
        for (const Json& param : row["params"]) {
          fmt::print("  {:18}   {}{}{}\n", "", param["accepts"].get<std::string>(),
                     param["help"].get<std::string>().empty() ? "" : ": ",
                     param["help"].get<std::string>());
        }
      }
    }
    return {};
  };
}

}  // namespace quern::cli
