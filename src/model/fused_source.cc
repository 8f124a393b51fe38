// SPDX-License-Identifier: Apache-2.0
#include "model/fused_source.h"

#include <algorithm>

namespace quern {
namespace {

Result<Matrix<double>> load_double(const WeightStore& store, const WeightId& id, Part part) {
  QUERN_ASSIGN(const Matrix<float> loaded, store.load(id, part));
  store.checkpoint().release(store.stored(id, part));
  Matrix<double> values(loaded.rows(), loaded.cols());
  std::copy_n(loaded.data(), loaded.rows() * loaded.cols(), values.data());
  return values;
}

}  // namespace

FusedSource::FusedSource(const ModelFiles& source, const BasisChange& basis)
    : source_(source),
      basis_(basis),
      desc_(in_basis(source.desc(), basis)),
      fold_(source.desc(), basis, [&store = source.store()](const WeightId& id, Part part) {
        return load_double(store, id, part);
      }) {}

Result<Matrix<float>> FusedSource::part(const WeightId& id, Part part) const {
  if (!is_changed(basis_, id)) {
    QUERN_ASSIGN(Matrix<float> loaded, source_.store().load(id, part));
    source_.store().checkpoint().release(source_.store().stored(id, part));
    return loaded;
  }
  QUERN_ASSIGN(const Matrix<double> exact, fold_.part(id, part));
  Matrix<float> rounded(exact.rows(), exact.cols());
  std::transform(exact.data(), exact.data() + exact.rows() * exact.cols(), rounded.data(),
                 [](double value) { return static_cast<float>(value); });
  return rounded;
}

Result<std::vector<float>> FusedSource::bias(const WeightId& id) const {
  if (!has_weight(desc_, id, Part::kBias)) return std::vector<float>();
  QUERN_ASSIGN(const Matrix<float> bias, part(id, Part::kBias));
  return std::vector<float>(bias.data(), bias.data() + bias.cols());
}

Result<NormWeight> FusedSource::norm(const WeightId& id, const NormDesc& desc) const {
  if (!is_changed(basis_, id) || desc.kind == NormKind::kNone) return source_.norm(id, desc);
  NormWeight norm;
  QUERN_ASSIGN(const Matrix<float> gain, weight(id));
  norm.gain.assign(gain.data(), gain.data() + gain.cols());
  for (float& value : norm.gain) value += static_cast<float>(desc.gain_offset);
  QUERN_ASSIGN(norm.bias, bias(id));
  return norm;
}

Result<LinearWeight> FusedSource::linear(const WeightId& id) const {
  if (!is_changed(basis_, id)) return source_.linear(id);
  QUERN_ASSIGN(Matrix<float> values, weight(id));
  QUERN_ASSIGN(std::vector<float> bias, this->bias(id));
  return dense_weight(std::move(values), std::move(bias));
}

Result<LayerWeights> FusedSource::layer(int index) const {
  QUERN_ASSIGN(LayerWeights layer, source_.layer(index));
  const LayerDesc& desc = desc_.layers[static_cast<size_t>(index)];
  layer.online = online_operators(basis_, desc_, index);
  QUERN_ASSIGN(layer.attn_norm, norm({Role::kAttnNorm, index, -1}, desc.attn_norm));
  QUERN_ASSIGN(layer.mlp_norm, norm({Role::kMlpNorm, index, -1}, desc.mlp_norm));
  for (const WeightId& id : weight_ids(desc_)) {
    if (id.layer != index || !is_linear(id.role) || !is_changed(basis_, id)) continue;
    QUERN_ASSIGN(layer.at(id.role, id.expert), linear(id));
  }
  return layer;
}

Result<EndWeights> FusedSource::ends() const {
  QUERN_ASSIGN(EndWeights ends, source_.ends());
  set_online_ends(basis_, ends);
  if (basis_.form().ends == Ends::kOnline) return ends;
  if (ends.is_turned) {
    QUERN_ASSIGN(ends.embed, linear({Role::kEmbed}));
    if (desc_.tied_head) {
      std::vector<float> bias = std::move(ends.head.bias);
      ends.head = ends.embed;
      ends.head.bias = std::move(bias);
    } else {
      QUERN_ASSIGN(ends.head, linear({Role::kLmHead}));
    }
    return ends;
  }
  QUERN_ASSIGN(ends.embed, linear({Role::kEmbed}));
  if (ends.pos_embed.exists()) {
    QUERN_ASSIGN(ends.pos_embed, linear({Role::kPosEmbed}));
  }
  QUERN_ASSIGN(ends.final_norm, norm({Role::kFinalNorm}, desc_.final_norm));
  QUERN_ASSIGN(ends.head, linear({Role::kLmHead}));
  return ends;
}

}  // namespace quern
