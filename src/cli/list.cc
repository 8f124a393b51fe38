// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "cli/command.h"
#include "codecs/codec.h"
#include "model/archs/arch.h"
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
  return {{"codecs", rows_json(codecs())},
          {"transforms", rows_json(transforms())},
          {"solvers", rows_json(solvers())},
          {"architectures", std::move(archs_json)}};
}

}  // namespace

Action declare_list(CLI::App& app) {
  struct Options {
    std::string what;
    bool json = false;
  };
  const auto o = std::make_shared<Options>();
  app.add_option("WHAT", o->what, "codecs, transforms, solvers or architectures; default: all")
      ->check(CLI::IsMember({"codecs", "transforms", "solvers", "architectures"}));
  add_json(app, o->json);
  return [o]() -> Status {
    const Json all = everything();
    if (o->json) {
      fmt::print("{}\n", (o->what.empty() ? all : all[o->what]).dump(1));
      return {};
    }
    for (const auto& [kind, rows] : all.items()) {
      if (!o->what.empty() && o->what != kind) continue;
      fmt::print("{}\n", kind);
      for (const Json& row : rows) {
        fmt::print("  {:14} {}\n", row["name"].get<std::string>(),
                   row["summary"].get<std::string>());
        for (const Json& param : row["params"]) {
          fmt::print("  {:14}   {}{}{}\n", "", param["accepts"].get<std::string>(),
                     param["help"].get<std::string>().empty() ? "" : ": ",
                     param["help"].get<std::string>());
        }
      }
    }
    return {};
  };
}

}  // namespace quern::cli
