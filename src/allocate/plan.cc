// SPDX-License-Identifier: Apache-2.0
#include "allocate/plan.h"

#include <algorithm>
#include <map>

#include "recipe/output_size.h"

namespace quern {
namespace {

constexpr int kFormat = 1;

// Adjacent layers of one role become one range.
std::vector<spec::WhereTerm> merged(std::vector<spec::WhereTerm> terms) {
  std::stable_sort(terms.begin(), terms.end(), [](const auto& a, const auto& b) {
    return a.name != b.name ? a.name < b.name : a.first < b.first;
  });
  std::vector<spec::WhereTerm> ranges;
  for (const spec::WhereTerm& term : terms) {
    const bool joins = !ranges.empty() && ranges.back().name == term.name && term.last > 0 &&
                       ranges.back().last == term.first;
    if (joins) {
      ranges.back().last = term.last;
    } else {
      ranges.push_back(term);
    }
  }
  return ranges;
}

Result<PlanRow> row_from(const Json& json, const std::string& where) {
  if (!json.is_object()) return error("{}: a unit is not an object", where);
  PlanRow row;
  QUERN_ASSIGN(row.unit, json_string(json, "unit"));
  QUERN_ASSIGN(row.stage, json_string(json, "stage"));
  if (row.stage == kKeep) return row;
  const auto call = spec::parse_call(row.stage);
  if (!call) return tl::unexpected(in_context(call.error(), where + ": " + row.unit));
  const auto solver = make_solver(*call);
  if (!solver) return tl::unexpected(in_context(solver.error(), where + ": " + row.unit));
  row.stage = (*solver)->spec();
  return row;
}

}  // namespace

Json Plan::to_json() const {
  Json list = Json::array();
  for (const PlanRow& row : rows) {
    Json unit = {
        {"unit", row.unit}, {"stage", row.stage}, {"weights", row.n_weights}, {"bytes", row.bytes}};
    if (row.kl >= 0) unit["expected_kl"] = row.kl;
    if (row.seconds >= 0) unit["seconds"] = row.seconds;
    list.push_back(std::move(unit));
  }
  Json json = {{"quern_plan", kFormat},   {"recipe", recipe}, {"source", source_digest},
               {"bytes", bytes},          {"bpw", bpw},       {"peak_bytes", peak_bytes},
               {"units", std::move(list)}};
  if (kl >= 0) json["expected_kl"] = kl;
  if (seconds >= 0) json["seconds"] = seconds;
  return json;
}

Result<Plan> read_plan(const std::string& path) {
  QUERN_ASSIGN(const Json json, read_json_file(path));
  return plan_from_json(json, path);
}

Result<Plan> plan_from_json(const Json& json, const std::string& where) {
  if (!json.is_object()) return error("{}: expected an object", where);
  const auto format = json_int(json, "quern_plan", 1, 1 << 20);
  if (!format) return tl::unexpected(in_context(format.error(), where));
  if (*format != kFormat) return error("{}: format {}, expected {}", where, *format, kFormat);
  Plan plan;
  QUERN_ASSIGN(plan.recipe, json_string(json, "recipe"));
  QUERN_ASSIGN(plan.source_digest, json_string(json, "source"));
  if (!json.contains("units") || !json["units"].is_array()) return error("{}: no units", where);
  for (const Json& unit : json["units"]) {
    QUERN_ASSIGN(PlanRow row, row_from(unit, where));
    plan.rows.push_back(std::move(row));
  }
  return plan;
}

Result<Recipe> recipe_of(const Prepared& prepared, const std::vector<Unit>& units,
                         const Plan& plan) {
  std::map<std::string, spec::WhereTerm> selectors;
  for (const Unit& unit : units) selectors[unit.name] = unit.where;
  std::vector<spec::Stage> stages;
  for (const PlanRow& row : plan.rows) {
    if (row.stage == kKeep) continue;
    const auto selector = selectors.find(row.unit);
    if (selector == selectors.end()) {
      return usage_error("plan: the mix selects no '{}' in this model", row.unit);
    }
    QUERN_ASSIGN(const spec::Call call, spec::parse_call(row.stage));
    auto stage = std::find_if(stages.begin(), stages.end(),
                              [&](const spec::Stage& other) { return other.call == call; });
    if (stage == stages.end()) stage = stages.insert(stages.end(), {call, {}});
    stage->where.push_back(selector->second);
  }
  for (spec::Stage& stage : stages) stage.where = merged(std::move(stage.where));
  return prepared.recipe.with_mix_as(stages);
}

Status finish_plan(const Prepared& prepared, const std::vector<Unit>& units, Plan& plan) {
  if (plan.source_digest != prepared.files->digest()) {
    return usage_error("plan: it was made for another model");
  }
  std::map<std::string, PlanRow> rows;
  for (PlanRow& row : plan.rows) {
    if (!rows.emplace(row.unit, row).second) return usage_error("plan: '{}' twice", row.unit);
  }
  plan.rows.clear();
  for (const Unit& unit : units) {
    const auto row = rows.find(unit.name);
    if (row == rows.end()) return usage_error("plan: nothing for '{}'", unit.name);
    plan.rows.push_back(std::move(row->second));
    plan.rows.back().n_weights = unit.n_weights;
    rows.erase(row);
  }
  if (!rows.empty()) {
    return usage_error("plan: the mix selects no '{}' in this model", rows.begin()->first);
  }
  QUERN_ASSIGN(const Recipe recipe, recipe_of(prepared, units, plan));
  QUERN_ASSIGN(const OutputPlan output, OutputPlan::make(*prepared.files, recipe, prepared.basis));
  for (size_t i = 0; i < units.size(); ++i) {
    plan.rows[i].bytes = 0;
    for (const WeightId& id : units[i].weights) {
      const WeightPlan& weight = output.at(id);
      plan.rows[i].bytes += weight.solver != nullptr ? coded_bytes(weight, weight.solver->codec())
                                                     : kept_bytes(prepared, weight);
    }
  }
  QUERN_ASSIGN(std::vector<TensorSpec> tensors, output_tensors(prepared, output));
  QUERN_ASSIGN(plan.bytes, weight_file_bytes(std::move(tensors)));
  plan.bpw =
      8.0 * static_cast<double>(plan.bytes) / static_cast<double>(prepared.files->n_params());
  plan.peak_bytes = output.peak_bytes(recipe.needs_calibration(), !prepared.basis.empty());
  return {};
}

}  // namespace quern
