// SPDX-License-Identifier: Apache-2.0
#include "model/fused_source.h"

#include <algorithm>

namespace quern {
namespace {

const NormDesc& norm_desc(const ModelDesc& model, const WeightId& id) {
  const LayerDesc& layer = model.layers[static_cast<size_t>(id.layer)];
  return folded_norm(id.role) == Role::kAttnNorm ? layer.attn_norm : layer.mlp_norm;
}

}  // namespace

Result<Matrix<float>> FusedSource::weight(const WeightId& id) const {
  QUERN_ASSIGN(Matrix<float> loaded, source_.store().load(id));
  source_.store().checkpoint().release(source_.store().stored(id));
  if (!is_changed(basis_, id.role)) return loaded;
  Matrix<double> w(loaded.rows(), loaded.cols());
  std::copy_n(loaded.data(), loaded.rows() * loaded.cols(), w.data());
  std::vector<double> gain;
  const Role norm = folded_norm(id.role);
  if (is_gain_folded(basis_, norm)) {
    const NormDesc& desc = norm_desc(source_.desc(), id);
    QUERN_ASSIGN(const Matrix<float> stored, source_.store().load({norm, id.layer, -1}));
    gain.assign(stored.data(), stored.data() + stored.cols());
    for (double& value : gain) value += desc.gain_offset;
  }
  fuse_weight(basis_, id.role, gain.empty() ? nullptr : gain.data(), w.view());
  std::transform(w.data(), w.data() + w.rows() * w.cols(), loaded.data(),
                 [](double value) { return static_cast<float>(value); });
  return loaded;
}

Result<std::vector<float>> FusedSource::bias(const WeightId& id) const {
  if (!source_.store().exists(id, Part::kBias)) return std::vector<float>();
  QUERN_ASSIGN(const Matrix<float> loaded, source_.store().load(id, Part::kBias));
  std::vector<double> bias(loaded.data(), loaded.data() + loaded.cols());
  fuse_bias(basis_, id.role, bias.data(), loaded.cols());
  return std::vector<float>(bias.begin(), bias.end());
}

Result<NormWeight> FusedSource::norm(const WeightId& id, const NormDesc& desc) const {
  QUERN_ASSIGN(NormWeight norm, source_.norm(id, desc));
  if (is_gain_folded(basis_, id.role)) std::fill(norm.gain.begin(), norm.gain.end(), 1.0f);
  return norm;
}

Result<LinearWeight> FusedSource::linear(const WeightId& id) const {
  if (!is_changed(basis_, id.role)) return source_.linear(id);
  QUERN_ASSIGN(Matrix<float> values, weight(id));
  QUERN_ASSIGN(std::vector<float> bias, this->bias(id));
  return dense_weight(std::move(values), std::move(bias));
}

Result<LayerWeights> FusedSource::layer(int index) const {
  QUERN_ASSIGN(LayerWeights layer, source_.layer(index));
  const LayerDesc& desc = source_.desc().layers[static_cast<size_t>(index)];
  QUERN_ASSIGN(layer.attn_norm, norm({Role::kAttnNorm, index, -1}, desc.attn_norm));
  QUERN_ASSIGN(layer.mlp_norm, norm({Role::kMlpNorm, index, -1}, desc.mlp_norm));
  for (const WeightId& id : source_.store().weight_ids()) {
    if (id.layer != index || !is_linear(id.role) || !is_changed(basis_, id.role)) continue;
    QUERN_ASSIGN(layer.at(id.role, id.expert), linear(id));
  }
  return layer;
}

}  // namespace quern
