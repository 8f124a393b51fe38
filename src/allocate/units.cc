// SPDX-License-Identifier: Apache-2.0
#include "allocate/units.h"

#include <algorithm>

namespace quern {
uint64_t kept_bytes(const Prepared& prepared, const WeightPlan& weight) {
  DType dtype = weight.dense_dtype;
  if (weight.fate == Fate::kCopy) dtype = prepared.files->store().stored(weight.id).dtype;
  return static_cast<uint64_t>(weight.n_out * weight.n_in * dtype_bits(dtype) / 8);
}

uint64_t coded_bytes(const WeightPlan& weight, const Codec& codec) {
  const auto planes = codec.planes(weight.n_out, weight.n_in);
  if (!planes) return 0;
  uint64_t total = 0;
  for (const PlaneSpec& plane : *planes) total += plane.n_bytes();
  return total;
}

namespace {

// `plan` keeps all that the mix selects.
void add_bytes(const Prepared& prepared, const OutputPlan& plan, Unit& unit) {
  for (const MixEntry& entry : prepared.recipe.mix()->menu) {
    uint64_t total = 0;
    bool fits = true;
    for (const WeightId& id : unit.weights) {
      const WeightPlan& weight = plan.at(id);
      const uint64_t bytes = entry.solver == nullptr ? kept_bytes(prepared, weight)
                                                     : coded_bytes(weight, entry.solver->codec());
      fits = fits && bytes > 0;
      total += bytes;
    }
    unit.bytes.push_back(fits ? total : 0);
  }
}

}  // namespace

Result<std::vector<Unit>> units_of(const Prepared& prepared) {
  const Recipe& recipe = prepared.recipe;
  if (recipe.mix() == nullptr) {
    return usage_error("recipe: '{}' has no mix(...), so there is nothing to allocate",
                       recipe.canonical());
  }
  if (recipe.is_fitted()) {
    return usage_error(
        "recipe: a mix is planned before any layer is run, in a basis that needs no data; rotate "
        "is such a transform");
  }
  const ModelDesc& desc = prepared.fused->desc();
  std::vector<Unit> units;
  for (const WeightId& id : weight_ids(desc)) {
    const bool can_be_coded = is_linear(id.role) || id.role == Role::kEmbed;
    if (!can_be_coded || !has_weight(desc, id) || !recipe.mixes(desc, id)) continue;
    const spec::WhereTerm where = selector_of(id.role, id.layer);
    auto unit = std::find_if(units.begin(), units.end(),
                             [&](const Unit& other) { return other.where == where; });
    if (unit == units.end()) {
      units.push_back({where, spec::print(std::vector{where}), {}, 0, {}});
      unit = units.end() - 1;
    }
    const Shape shape = weight_shape(desc, id);
    unit->weights.push_back(id);
    unit->n_weights += shape[0] * shape[1];
  }
  if (units.empty()) return usage_error("recipe: mix selects no matrix of this model");
  QUERN_ASSIGN(const OutputPlan plan, OutputPlan::make(*prepared.files, recipe, prepared.basis));
  for (Unit& unit : units) add_bytes(prepared, plan, unit);
  return units;
}

}  // namespace quern
