// SPDX-License-Identifier: Apache-2.0
#include "model/fuse.h"

#include <algorithm>
#include <vector>

#include "model/fuse_rules.h"

namespace quern {
namespace {

// Whether a diagonal over all heads scales those that share a KV head alike.
bool is_equal_in_groups(const Operator& op, const AttentionDesc& attention) {
  const int64_t width = attention.n_heads * attention.d_head;
  if (width % op.size() != 0) return false;
  std::vector<double> scale(static_cast<size_t>(width), 1.0);
  op.apply(scale.data(), width);
  const int64_t d = attention.d_head, per_kv = attention.n_heads / attention.n_kv_heads;
  for (int64_t head = 0; head < attention.n_heads; ++head) {
    const int64_t leader = head / per_kv * per_kv;
    if (!std::equal(scale.begin() + head * d, scale.begin() + (head + 1) * d,
                    scale.begin() + leader * d)) {
      return false;
    }
  }
  return true;
}

bool folds(const Operator& op, Site site, const LayerDesc& layer) {
  const bool is_diagonal = op.kind() == OperatorKind::kDiagonal;
  switch (site) {
    case Site::kAttnIn:
      return is_diagonal && layer.attn_norm.kind != NormKind::kNone;
    case Site::kMlpIn:
      return is_diagonal && layer.mlp_norm.kind != NormKind::kNone;
    case Site::kFfn:
      return op.kind() == OperatorKind::kPermutation || (is_diagonal && layer.mlp.gated);
    case Site::kHeads:
      return is_diagonal && is_equal_in_groups(op, layer.attention);
    default:
      return false;
  }
}

// Of a form with biases.
bool may_get_bias(Role role) {
  switch (role) {
    case Role::kQ:
    case Role::kK:
    case Role::kV:
    case Role::kO:
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
      return true;
    default:
      return false;
  }
}

void become_rms(const StreamForm& form, NormDesc& norm) {
  if (norm.kind == NormKind::kLayer && form.is_centred) norm.kind = NormKind::kRms;
  norm.has_bias = false;
}

Status check_chain(const Chain& chain, Site site, int64_t size) {
  if (chain.operators().size() > kMaxChain) {
    return error("basis: site '{}' has {} operators, at most {}", site_name(site),
                 chain.operators().size(), kMaxChain);
  }
  for (const auto& op : chain.operators()) {
    if (size % op->size() != 0) {
      return error("basis: an operator of size {} at site {} does not divide {}", op->size(),
                   site_name(site), size);
    }
    if (site == Site::kResidual && !op->is_orthogonal()) {
      return error("basis: an operator at site residual is not orthogonal");
    }
  }
  return {};
}

}  // namespace

std::vector<Site> sites_read(Role role) {
  switch (role) {
    case Role::kQ:
    case Role::kK:
    case Role::kV:
      return {Site::kResidual, Site::kAttnIn};
    case Role::kGate:
    case Role::kUp:
    case Role::kRouter:
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedRouter:
      return {Site::kResidual, Site::kMlpIn};
    case Role::kO:
      return {Site::kValue, Site::kHeads};
    case Role::kDown:
      return {Site::kFfn};
    default:
      return {};
  }
}

std::vector<Site> sites_written(Role role) {
  switch (role) {
    case Role::kAttnNorm:
      return {Site::kAttnIn};
    case Role::kMlpNorm:
      return {Site::kMlpIn};
    case Role::kV:
      return {Site::kValue, Site::kHeads};
    case Role::kGate:
    case Role::kUp:
      return {Site::kFfn};
    case Role::kO:
    case Role::kDown:
    case Role::kSharedDown:
      return {Site::kResidual};
    default:
      return {};
  }
}

Role norm_before(Role role) {
  const std::vector<Site> sites = sites_read(role);
  if (sites.size() < 2 || sites[0] != Site::kResidual) return Role::kEmbed;
  return sites[1] == Site::kAttnIn ? Role::kAttnNorm : Role::kMlpNorm;
}

const NormDesc& norm_desc(const ModelDesc& model, const WeightId& id) {
  if (id.role == Role::kFinalNorm) return model.final_norm;
  const LayerDesc& layer = model.layers[static_cast<size_t>(id.layer)];
  return id.role == Role::kAttnNorm ? layer.attn_norm : layer.mlp_norm;
}

size_t n_folded(const BasisChange& basis, const ModelDesc& model, Site site, int layer) {
  const auto& operators = basis.at(site, layer).operators();
  const LayerDesc& desc = model.layers[static_cast<size_t>(layer)];
  size_t n = 0;
  while (n < operators.size() && folds(*operators[n], site, desc)) ++n;
  return n;
}

bool changes_stream(const BasisChange& basis) {
  return !basis.empty(Site::kResidual) || basis.is_sliced() || basis.form().is_centred;
}

bool is_head_folded(const BasisChange& basis) {
  return basis.form().has_folded_ends() && !basis.empty(Site::kResidual);
}

std::string stream_obstacle(const LayerDesc& layer, const StreamForm& form) {
  for (const NormDesc& norm : {layer.attn_norm, layer.mlp_norm}) {
    if (norm.kind == NormKind::kNone) return "a layer reads the stream without a norm";
    if (norm.kind == NormKind::kLayer && !form.is_centred) {
      return "a LayerNorm does not commute with a change of the stream";
    }
  }
  if (layer.attn_post_norm.kind != NormKind::kNone || layer.mlp_post_norm.kind != NormKind::kNone) {
    return "the gain of a norm after attention or MLP stands between the writer and the stream";
  }
  if (layer.mlp_norm.has_bias && layer.mlp.n_experts > 0) {
    return "the bias of a norm before a router of experts has nowhere to go";
  }
  return "";
}

OnlineOperators online_operators(const BasisChange& basis, const ModelDesc& model, int layer) {
  const auto online = [&](Site site) {
    return basis.at(site, layer).after(n_folded(basis, model, site, layer));
  };
  return {online(Site::kAttnIn), online(Site::kHeads), online(Site::kQk), online(Site::kMlpIn),
          online(Site::kFfn)};
}

OnlineCost online_cost(const BasisChange& basis, const ModelDesc& model) {
  const ModelDesc changed = in_basis(model, basis);
  OnlineCost cost;
  const auto add = [&](const Chain& chain, int64_t count, int64_t times = 1) {
    cost.flops += times * chain.flops(count);
    cost.bytes += chain.bytes();
  };
  for (size_t i = 0; i < changed.layers.size(); ++i) {
    const LayerDesc& layer = changed.layers[i];
    const AttentionDesc& a = layer.attention;
    const OnlineOperators online = online_operators(basis, changed, static_cast<int>(i));
    const int64_t d_in = changed.width_in(layer), d_mid = changed.width_mid(layer);
    add(online.attn_in, d_in);
    add(online.mlp_in, d_mid);
    add(online.heads, a.n_heads * a.d_head);
    add(online.qk, (a.n_heads + a.n_kv_heads) * a.d_head);
    add(online.ffn, layer.mlp.d_ffn, layer.mlp.n_experts > 0 ? layer.mlp.top_k : 1);
    if (!layer.is_sliced()) continue;
    const int64_t weights = changed.width_out(layer) * d_mid + (layer.parallel ? 0 : d_mid * d_in);
    cost.flops += 2 * weights;
    cost.bytes += 2 * weights;  // in halves
  }
  if (!basis.form().has_folded_ends()) {
    add(basis.at(Site::kResidual), model.d_model, 2);
    if (basis.form().is_centred) cost.flops += 2 * model.d_model;
  }
  return cost;
}

ModelDesc in_basis(const ModelDesc& model, const BasisChange& basis) {
  ModelDesc changed = model;
  const StreamForm& form = basis.form();
  for (size_t i = 0; i < changed.layers.size(); ++i) {
    LayerDesc& layer = changed.layers[i];
    if (form.has_biases) {
      layer.attention.qkv_bias = layer.attention.o_bias = true;
      layer.mlp.bias = layer.mlp.bias || layer.mlp.n_experts == 0;
    }
    if (!changes_stream(basis)) continue;
    layer.attention.qkv_bias = layer.attention.qkv_bias || layer.attn_norm.has_bias;
    layer.mlp.bias = layer.mlp.bias || layer.mlp_norm.has_bias;
    for (NormDesc* norm : {&layer.attn_norm, &layer.mlp_norm}) become_rms(form, *norm);
    if (!basis.is_sliced()) continue;
    const auto place = static_cast<int>(i);
    layer.d_in = form.widths[static_cast<size_t>(place_in(place))];
    layer.d_mid = layer.parallel ? 0 : form.widths[static_cast<size_t>(place_mid(place))];
    layer.d_out = form.widths[static_cast<size_t>(place_out(place))];
  }
  if (form.has_folded_ends()) changed.tied_head = false;
  if (is_head_folded(basis)) {
    changed.head_bias = changed.head_bias || changed.final_norm.has_bias;
    become_rms(form, changed.final_norm);
  }
  return changed;
}

bool is_changed(const BasisChange& basis, const WeightId& id) {
  switch (id.role) {
    case Role::kAttnSkip:
    case Role::kMlpSkip:
      return true;
    case Role::kPosEmbed:
      return basis.form().has_folded_ends();
    case Role::kEmbed:
    case Role::kLmHead:
      return basis.form().ends != Ends::kOnline;
    case Role::kFinalNorm:
      return is_head_folded(basis);
    case Role::kAttnNorm:
    case Role::kMlpNorm:
      if (changes_stream(basis)) return true;
      break;
    default:
      break;
  }
  const std::vector<Site> in = sites_read(id.role), out = sites_written(id.role);
  if (basis.form().has_biases && may_get_bias(id.role)) return true;
  const auto reads = [&](Site site) {
    if (site == Site::kResidual) return changes_stream(basis);
    return !basis.at(site, id.layer).empty() || basis.is_expected(site);
  };
  const auto writes = [&](Site site) {
    if (site == Site::kResidual || site == Site::kValue) return reads(site);
    const auto& operators = basis.at(site, id.layer).operators();
    const bool may_fold = !operators.empty() && operators[0]->kind() != OperatorKind::kOther;
    return may_fold || basis.is_expected(site);
  };
  return std::any_of(in.begin(), in.end(), reads) || std::any_of(out.begin(), out.end(), writes);
}

Status check_form(const BasisChange& basis, const ModelDesc& original) {
  const StreamForm& form = basis.form();
  const size_t n_layers = original.layers.size();
  if (basis.is_sliced()) {
    if (form.widths.size() != 2 * n_layers + 1) {
      return error("basis: {} widths of a stream through {} layers", form.widths.size(), n_layers);
    }
    for (const int64_t width : form.widths) {
      if (width < 1 || width > original.d_model) {
        return error("basis: a stream of {} cut from {}", width, original.d_model);
      }
    }
    if (form.widths.back() != original.d_model) return error("basis: the head is sliced");
    if (!form.has_folded_ends() || !basis.empty(Site::kResidual)) {
      return error("basis: a sliced stream must begin in the embedding and is not rotated");
    }
  }
  if (form.ends == Ends::kTurned &&
      (form.is_centred || original.positions == PositionKind::kLearned)) {
    return error("basis: turned ends of a model whose stream begins in more than an embedding");
  }
  for (const LayerDesc& layer : original.layers) {
    if (!changes_stream(basis)) break;
    const std::string obstacle = stream_obstacle(layer, form);
    if (!obstacle.empty()) return error("basis: {}", obstacle);
  }
  return {};
}

Status check_basis(const BasisChange& basis, const ModelDesc& model) {
  const auto n_layers = static_cast<int>(model.layers.size());
  if (basis.last_layer() >= n_layers) {
    return error("basis: an operator for layer {} of {}", basis.last_layer(), n_layers);
  }
  for (int i = 0; i < n_layers; ++i) {
    const LayerDesc& layer = model.layers[static_cast<size_t>(i)];
    const int64_t d_head = layer.attention.d_head;
    const std::pair<Site, int64_t> sizes[] = {{Site::kResidual, model.d_model},
                                              {Site::kAttnIn, model.width_in(layer)},
                                              {Site::kMlpIn, model.width_mid(layer)},
                                              {Site::kValue, d_head},
                                              {Site::kQk, d_head},
                                              {Site::kHeads, layer.attention.n_heads * d_head},
                                              {Site::kFfn, layer.mlp.d_ffn}};
    for (const auto& [site, size] : sizes) QUERN_TRY(check_chain(basis.at(site, i), site, size));
  }
  return {};
}

}  // namespace quern
