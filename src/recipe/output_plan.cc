// SPDX-License-Identifier: Apache-2.0
#include "recipe/output_plan.h"

#include <algorithm>

#include "model/fuse.h"

namespace quern {
namespace {

constexpr Part kParts[] = {Part::kWeight, Part::kBias};

// The source's own float type; what was decoded from blocks becomes F16.
DType dense_dtype(const TensorInfo& tensor) {
  if (tensor.block_type != 0 || !is_plain_float(tensor.dtype)) return DType::kF16;
  return tensor.dtype == DType::kF64 ? DType::kF32 : tensor.dtype;
}

// A weight of the source whose type one takes that the change of basis added.
WeightId model_for_type(const WeightStore& store, const WeightId& id) {
  if (store.exists(id)) return id;
  return id.layer < 0 ? WeightId{Role::kEmbed} : WeightId{Role::kO, id.layer};
}

// Coded matrices alone may have their inputs rounded.
Status plan_act(const ModelDesc& model, const Recipe& recipe, WeightPlan& weight) {
  weight.act = recipe.act_for(model, weight.id);
  if (weight.act == nullptr) return {};
  if (weight.id.role == Role::kEmbed && weight.act->n_ranges(weight.n_in) > 0) {
    return usage_error(
        "recipe: act: the tied head is coded with the embedding, before the layers are run: a "
        "static scale of its inputs is not known");
  }
  const int64_t group = weight.solver->codec().panel_tile(weight.n_in).group;
  const Status fits = weight.act->check(weight.n_in, group);
  if (!fits) return tl::unexpected(in_context(fits.error(), to_string(weight.id)));
  return {};
}

}  // namespace

Result<OutputPlan> OutputPlan::make(const ModelFiles& source, const Recipe& recipe,
                                    const BasisChange& basis) {
  const WeightStore& store = source.store();
  const ModelDesc desc = in_basis(source.desc(), basis);
  OutputPlan plan;
  bool has_act = false;
  std::set<std::string> broken_up;  // source tensors that do not survive as they are
  for (const WeightId& id : weight_ids(desc)) {
    if (!has_weight(desc, id)) {  // the bias of a tied head stands alone
      plan.copied_.insert(store.stored(id, Part::kBias).name);
      continue;
    }
    WeightPlan weight{.id = id};
    const Shape shape = weight_shape(desc, id);
    weight.n_out = shape.size() == 2 ? shape[0] : 1;
    weight.n_in = shape.back();
    weight.name = store.stored_name(id);
    weight.bias_name = store.stored_name(id, Part::kBias);
    weight.dense_dtype = dense_dtype(store.stored(model_for_type(store, id)));
    const bool can_be_coded = is_linear(id.role) || id.role == Role::kEmbed;
    weight.solver = can_be_coded ? recipe.solver_for(desc, id) : nullptr;
    if (weight.solver != nullptr) {
      auto planes = weight.solver->codec().planes(weight.n_out, weight.n_in);
      if (!planes) return tl::unexpected(in_context(planes.error(), to_string(id)));
      weight.fate = Fate::kCoded;
      QUERN_TRY(plan_act(desc, recipe, weight));
    } else if (is_changed(basis, id) || !store.exists(id) || !store.is_in_order()) {
      weight.fate = Fate::kDense;
    }
    if (weight.fate != Fate::kCopy) {
      for (const Part part : kParts) {
        if (store.exists(id, part)) broken_up.insert(store.stored(id, part).name);
      }
    }
    has_act = has_act || weight.act != nullptr;
    plan.index_[id] = plan.weights_.size();
    plan.weights_.push_back(std::move(weight));
  }
  if (recipe.has_act() && !has_act) {
    return usage_error("recipe: act: none of the matrices that it selects is coded");
  }
  // A weight that shares its stored tensor with a changed one must be cut out of it.
  for (WeightPlan& weight : plan.weights_) {
    for (const Part part : kParts) {
      if (!store.exists(weight.id, part)) continue;
      const TensorInfo& tensor = store.stored(weight.id, part);
      if (weight.fate == Fate::kCopy && broken_up.contains(tensor.name)) {
        weight.fate = Fate::kDense;
      }
    }
  }
  for (const WeightPlan& weight : plan.weights_) {
    if (weight.fate != Fate::kCopy) continue;
    for (const Part part : kParts) {
      if (store.exists(weight.id, part)) {
        plan.copied_.insert(store.stored(weight.id, part).name);
      }
    }
  }
  return plan;
}

const WeightPlan& OutputPlan::at(const WeightId& id) const { return weights_[index_.at(id)]; }

std::vector<const WeightPlan*> OutputPlan::of_layer(int layer) const {
  std::vector<const WeightPlan*> found;
  for (const WeightPlan& weight : weights_) {
    if (weight.id.layer == layer && weight.fate != Fate::kCopy) found.push_back(&weight);
  }
  return found;
}

size_t OutputPlan::peak_bytes(bool has_streams, bool is_folded) const {
  size_t floats = 0, codes = 0, widest = 0, largest_layer = 0, hessian = 0, solver = 0;
  int layer = -2;
  for (const WeightPlan& weight : weights_) {
    if (weight.id.layer != layer) floats = codes = 0;
    layer = weight.id.layer;
    if (weight.fate == Fate::kCopy) continue;
    const auto n = static_cast<size_t>(weight.n_out * weight.n_in);
    if (has_streams && is_folded) floats += n * sizeof(float);
    codes += n;
    // Read as float, folded in double.
    widest = std::max(widest, n * (2 * sizeof(float) + (is_folded ? sizeof(double) : 0)));
    if (weight.solver != nullptr) {
      solver = std::max(solver, weight.solver->scratch_bytes(weight.n_out, weight.n_in));
      const auto n_in = static_cast<size_t>(weight.n_in);
      if (weight.solver->needs_hessian()) {
        hessian = std::max(hessian, n_in * n_in * sizeof(double));
      }
    }
    largest_layer = std::max(largest_layer, floats + codes);
  }
  return largest_layer + widest + solver + hessian;
}

int64_t OutputPlan::n_coded() const {
  return std::count_if(weights_.begin(), weights_.end(),
                       [](const WeightPlan& weight) { return weight.fate == Fate::kCoded; });
}

}  // namespace quern
