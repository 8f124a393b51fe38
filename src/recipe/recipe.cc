// SPDX-License-Identifier: Apache-2.0
#include "recipe/recipe.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "recipe/presets.h"

namespace quern {
namespace {

// Names a selector may use, and the roles they stand for.
struct Selector {
  std::string_view name;
  std::vector<Role> roles;
};

const std::vector<Selector>& selectors() {
  static const std::vector<Selector> rows = {
      {"all",
       {Role::kQ, Role::kK, Role::kV, Role::kO, Role::kGate, Role::kUp, Role::kDown,
        Role::kSharedGate, Role::kSharedUp, Role::kSharedDown, Role::kLmHead}},
      {"attn", {Role::kQ, Role::kK, Role::kV, Role::kO}},
      {"ffn",
       {Role::kGate, Role::kUp, Role::kDown, Role::kSharedGate, Role::kSharedUp,
        Role::kSharedDown}},
      {"q", {Role::kQ}},
      {"k", {Role::kK}},
      {"v", {Role::kV}},
      {"o", {Role::kO}},
      {"gate", {Role::kGate, Role::kSharedGate}},
      {"up", {Role::kUp, Role::kSharedUp}},
      {"down", {Role::kDown, Role::kSharedDown}},
      {"embed", {Role::kEmbed}},
      {"lm_head", {Role::kLmHead}},
  };
  return rows;
}

const Selector* find_selector(std::string_view name) {
  for (const Selector& row : selectors()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

bool contains(std::string_view name, Role role) {
  const std::vector<Role>& roles = find_selector(name)->roles;
  return std::find(roles.begin(), roles.end(), role) != roles.end();
}

bool term_selects(const spec::WhereTerm& term, const WeightId& id) {
  return term.has_layer(id.layer) && contains(term.name == "layers" ? "all" : term.name, id.role);
}

bool selects(const std::vector<spec::WhereTerm>& where, const WeightId& id) {
  if (where.empty()) return id.layer >= 0 && contains("all", id.role);
  bool is_in = false;
  for (const spec::WhereTerm& term : where) {
    if (term_selects(term, id)) is_in = term.add;
  }
  return is_in;
}

Status check_where(const std::vector<spec::WhereTerm>& where) {
  for (const spec::WhereTerm& term : where) {
    if (term.last > 0 && (term.name == "embed" || term.name == "lm_head")) {
      return usage_error("recipe: '{}' is of no layer and takes no range", term.name);
    }
    if (term.name == "layers" ? term.last > 0 : find_selector(term.name) != nullptr) continue;
    std::string names = "layers[first:last]";
    for (const Selector& row : selectors()) names += fmt::format(" {}", row.name);
    return usage_error("recipe: no selector '{}'; the selectors are {}", term.name, names);
  }
  return {};
}

// `act(QUANTIZER)`: an input meets weights, so rows of an embedding that are only read have none.
Result<ActStage> parse_act(const spec::Stage& stage) {
  constexpr spec::ParamSpec kParams[] = {
      {"quantizer", spec::ParamKind::kCall, "", 0, 0, "", "how inputs are rounded"}};
  QUERN_ASSIGN(const spec::Params params, spec::Params::bind(stage.call, kParams));
  for (const spec::WhereTerm& term : stage.where) {
    if (term.name == "embed") {
      return usage_error("recipe: act: the embedding is read by rows and has no inputs to round");
    }
  }
  QUERN_ASSIGN(std::shared_ptr<const ActQuantizer> act, make_act(params.call("quantizer")));
  return ActStage{std::move(act), stage.where};
}

std::string stage_names() {
  std::string names = "transforms";
  for (const TransformInfo& info : transforms()) names += fmt::format(" {}", info.name);
  names += "; act; solvers";
  for (const SolverInfo& info : solvers()) names += fmt::format(" {}", info.name);
  names += " mix";
  return names;
}

}  // namespace

spec::WhereTerm selector_of(Role role, int layer) {
  for (const Selector& row : selectors()) {
    const bool is_own = row.name != "all" && row.name != "attn" && row.name != "ffn";
    if (!is_own || std::find(row.roles.begin(), row.roles.end(), role) == row.roles.end()) continue;
    spec::WhereTerm term;
    term.name = row.name;
    if (layer >= 0) {
      term.first = layer;
      term.last = layer + 1;
    }
    return term;
  }
  QUERN_CHECK(false);  // every role that can be coded has a selector
}

Result<Recipe> Recipe::load(std::string_view text_or_name) {
  if (const RecipePreset* preset = find_recipe_preset(text_or_name)) return parse(preset->text);
  const std::string path(text_or_name);
  if (path.ends_with(".recipe")) {
    QUERN_ASSIGN(const std::string text, read_file(path, 64 << 10));
    return parse(text);
  }
  return parse(text_or_name);
}

Result<Recipe> Recipe::parse(std::string_view text) {
  QUERN_ASSIGN(const std::vector<spec::Stage> stages, spec::parse_recipe(text));
  Recipe recipe;
  std::vector<spec::Stage> canonical;
  for (const spec::Stage& stage : stages) {
    QUERN_TRY(check_where(stage.where));
    std::string printed;
    if (const TransformInfo* info = find_transform(stage.call.name)) {
      if (!stage.where.empty()) {
        return usage_error("recipe: {} takes sites=..., not a selector", stage.call.name);
      }
      if (!recipe.coding_.empty() || !recipe.acts_.empty()) {
        return usage_error("recipe: {} comes after {}; coordinates change first", stage.call.name,
                           recipe.acts_.empty() ? "a coding stage" : "act");
      }
      QUERN_ASSIGN(const spec::Params params, spec::Params::bind(stage.call, info->params));
      QUERN_ASSIGN(auto transform, info->make(params));
      printed = transform->spec();
      recipe.transforms_.push_back(std::move(transform));
    } else if (stage.call.name == "act") {
      if (!recipe.coding_.empty()) {
        return usage_error(
            "recipe: act comes after a coding stage; weights are coded for rounded inputs");
      }
      QUERN_ASSIGN(ActStage act, parse_act(stage));
      printed = fmt::format("act({})", act.act->spec());
      recipe.acts_.push_back(std::move(act));
    } else if (recipe.mix() != nullptr) {
      return usage_error("recipe: {} comes after mix; mix is the last stage", stage.call.name);
    } else if (find_solver(stage.call.name) != nullptr) {
      QUERN_ASSIGN(auto solver, make_solver(stage.call));
      printed = solver->spec();
      recipe.coding_.push_back({std::move(solver), nullptr, stage.where});
    } else if (stage.call.name == "mix") {
      QUERN_ASSIGN(auto mix, parse_mix(stage.call));
      printed = spec::print(print_mix(*mix));
      recipe.coding_.push_back({nullptr, std::move(mix), stage.where});
    } else {
      return usage_error("recipe: no stage '{}'; the stages are {}", stage.call.name,
                         stage_names());
    }
    QUERN_ASSIGN(spec::Call call, spec::parse_call(printed));
    canonical.push_back({std::move(call), stage.where});
  }
  recipe.canonical_ = spec::print(canonical);
  recipe.stages_ = std::move(canonical);
  return recipe;
}

Status Recipe::check(const ModelDesc& model) const {
  std::vector<const std::vector<spec::WhereTerm>*> selectors;
  for (const CodingStage& stage : coding_) selectors.push_back(&stage.where);
  for (const ActStage& stage : acts_) selectors.push_back(&stage.where);
  const auto n_layers = static_cast<int64_t>(model.layers.size());
  for (const auto* where : selectors) {
    for (const spec::WhereTerm& term : *where) {
      if (term.last > n_layers) {
        return usage_error("recipe: {}[{}:{}] reaches past the model's {} layers", term.name,
                           term.first, term.last, n_layers);
      }
    }
  }
  if (!acts_.empty() && coding_.empty()) {
    return usage_error("recipe: act rounds the inputs of coded matrices, and none is coded");
  }
  return {};
}

const CodingStage* Recipe::stage_for(const ModelDesc& model, const WeightId& id) const {
  for (const CodingStage& stage : coding_) {
    if (selects(stage.where, id)) return &stage;
    // A tied head and its embedding are one matrix: naming either codes it.
    if (model.tied_head && id.role == Role::kEmbed &&
        selects(stage.where, {Role::kLmHead, -1, -1})) {
      return &stage;
    }
  }
  return nullptr;
}

const Solver* Recipe::solver_for(const ModelDesc& model, const WeightId& id) const {
  const CodingStage* const stage = stage_for(model, id);
  return stage == nullptr ? nullptr : stage->solver.get();
}

const Mix* Recipe::mix() const {
  return coding_.empty() ? nullptr : coding_.back().mix.get();  // the last stage, by parse
}

bool Recipe::mixes(const ModelDesc& model, const WeightId& id) const {
  const CodingStage* const stage = stage_for(model, id);
  return stage != nullptr && stage->mix != nullptr;
}

Result<Recipe> Recipe::with_mix_as(const std::vector<spec::Stage>& stages) const {
  std::vector<spec::Stage> all(stages_.begin(), stages_.end() - (mix() != nullptr ? 1 : 0));
  all.insert(all.end(), stages.begin(), stages.end());
  return parse(spec::print(all));
}

std::shared_ptr<const ActQuantizer> Recipe::act_for(const ModelDesc& model,
                                                    const WeightId& id) const {
  // A tied head is multiplied, its embedding is not.
  const bool is_head = model.tied_head && id.role == Role::kEmbed;
  const WeightId multiplied = is_head ? WeightId{Role::kLmHead, -1, -1} : id;
  for (const ActStage& stage : acts_) {
    if (selects(stage.where, multiplied)) return stage.act;
  }
  return nullptr;
}

bool Recipe::needs_calibration() const {
  return is_fitted() ||
         std::any_of(transforms_.begin(), transforms_.end(),
                     [](const auto& transform) { return transform->corrects_biases(); }) ||
         std::any_of(coding_.begin(), coding_.end(),
                     [](const CodingStage& stage) {
                       return stage.mix != nullptr || stage.solver->needs_hessian() ||
                              stage.solver->needs_gradients();
                     }) ||
         std::any_of(acts_.begin(), acts_.end(),
                     [](const ActStage& stage) { return stage.act->n_ranges(1) > 0; });
}

bool Recipe::is_fitted() const {
  return std::any_of(transforms_.begin(), transforms_.end(),
                     [](const auto& transform) { return transform->is_fitted(); });
}

}  // namespace quern
