// SPDX-License-Identifier: Apache-2.0
#include "model/model_files.h"

#include "base/digest.h"

namespace quern {
namespace {

constexpr Role kLayerLinears[] = {Role::kQ,          Role::kK,        Role::kV,
                                  Role::kO,          Role::kRouter,   Role::kSharedRouter,
                                  Role::kSharedGate, Role::kSharedUp, Role::kSharedDown,
                                  Role::kAttnSkip,   Role::kMlpSkip};
constexpr Role kExpertLinears[] = {Role::kGate, Role::kUp, Role::kDown};

bool runs_as_stored(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

}  // namespace

Result<std::unique_ptr<ModelFiles>> ModelFiles::open(const std::string& path,
                                                     Activations activations) {
  std::unique_ptr<ModelFiles> files(new ModelFiles);
  files->activations_ = activations;
  QUERN_ASSIGN(WeightStore store, WeightStore::open(path));
  files->store_ = std::make_unique<WeightStore>(std::move(store));
  return files;
}

Result<LinearWeight> ModelFiles::linear(const WeightId& id) const {
  LinearWeight weight;
  weight.activations = activations_;
  const Shape shape = store_->shape(id);
  weight.n_out = shape[0];
  weight.n_in = shape[1];
  if (store_->exists(id, Part::kBias)) {
    QUERN_ASSIGN(const Matrix<float> bias, store_->load(id, Part::kBias));
    weight.bias.assign(bias.data(), bias.data() + bias.cols());
  }
  if (const PackedTensor* coded = store_->coded(id)) {
    QUERN_ASSIGN(weight.codes, find_codes(store_->checkpoint(), store_->stored_name(id), *coded));
    weight.codec = coded->codec.get();
    QUERN_ASSIGN(weight.rounding,
                 find_rounding(store_->checkpoint(), store_->stored_name(id), *coded));
    weight = in_runtime_form(std::move(weight), *coded->codec);
    QUERN_TRY(check_rounding(weight));
    if (weight.codec != coded->codec.get()) {
      release_codes(store_->checkpoint(), store_->stored_name(id), *coded);
    }
    return weight;
  }
  const TensorInfo* tensor = store_->direct(id);
  if (tensor != nullptr && tensor->block_type == 0 && runs_as_stored(tensor->dtype)) {
    // Floats are used in place, which needs their alignment; halves are converted row by row.
    const bool is_aligned = reinterpret_cast<uintptr_t>(tensor->bytes) % sizeof(float) == 0;
    if (tensor->dtype != DType::kF32 || is_aligned) {
      weight.dtype = tensor->dtype;
      weight.dense = tensor->bytes;
      return multiplied(std::move(weight), id);
    }
  }
  QUERN_ASSIGN(Matrix<float> values, store_->load(id));
  LinearWeight owned = dense_weight(std::move(values), std::move(weight.bias));
  owned.activations = activations_;
  return multiplied(std::move(owned), id);
}

// A dense weight as it is multiplied; of an embedding rows are read.
LinearWeight ModelFiles::multiplied(LinearWeight dense, const WeightId& id) const {
  if (id.role == Role::kEmbed || id.role == Role::kPosEmbed) return dense;
  // Which experts a token meets is no matter of rounding.
  if (id.role == Role::kRouter) dense.activations = Activations::kExact;
  dense = in_runtime_form(std::move(dense));
  const TensorInfo* tensor = store_->direct(id);
  if (dense.pairs != nullptr && tensor != nullptr) store_->checkpoint().release(*tensor);
  return dense;
}

Result<NormWeight> ModelFiles::norm(const WeightId& id, const NormDesc& desc) const {
  NormWeight norm;
  if (desc.kind == NormKind::kNone) return norm;
  QUERN_ASSIGN(const Matrix<float> gain, store_->load(id));
  norm.gain.assign(gain.data(), gain.data() + gain.cols());
  for (float& value : norm.gain) value += static_cast<float>(desc.gain_offset);
  if (desc.has_bias) {
    QUERN_ASSIGN(const Matrix<float> bias, store_->load(id, Part::kBias));
    norm.bias.assign(bias.data(), bias.data() + bias.cols());
  }
  return norm;
}

Result<LayerWeights> ModelFiles::layer(int index) const {
  const LayerDesc& desc = this->desc().layers[static_cast<size_t>(index)];
  LayerWeights layer;
  layer.online = online_operators(basis(), this->desc(), index);
  layer.experts.resize(static_cast<size_t>(std::max<int64_t>(1, desc.mlp.n_experts)));
  QUERN_ASSIGN(layer.attn_norm, norm({Role::kAttnNorm, index, -1}, desc.attn_norm));
  QUERN_ASSIGN(layer.attn_post_norm, norm({Role::kAttnPostNorm, index, -1}, desc.attn_post_norm));
  QUERN_ASSIGN(layer.mlp_norm, norm({Role::kMlpNorm, index, -1}, desc.mlp_norm));
  QUERN_ASSIGN(layer.mlp_post_norm, norm({Role::kMlpPostNorm, index, -1}, desc.mlp_post_norm));
  QUERN_ASSIGN(layer.q_norm, norm({Role::kQNorm, index, -1}, desc.attention.qk_norm));
  QUERN_ASSIGN(layer.k_norm, norm({Role::kKNorm, index, -1}, desc.attention.qk_norm));
  for (const Role role : kLayerLinears) {
    const WeightId id{role, index, -1};
    if (!store_->exists(id)) continue;
    QUERN_ASSIGN(layer.at(role, -1), linear(id));
  }
  for (int e = 0; e < static_cast<int>(layer.experts.size()); ++e) {
    for (const Role role : kExpertLinears) {
      const WeightId id{role, index, desc.mlp.n_experts > 0 ? e : -1};
      if (!store_->exists(id)) continue;
      QUERN_ASSIGN(layer.at(role, e), linear(id));
    }
  }
  return layer;
}

void set_online_ends(const BasisChange& basis, EndWeights& ends) {
  const bool is_folded = basis.form().has_folded_ends();
  ends.is_turned = basis.form().ends == Ends::kTurned;
  ends.residual = is_folded ? Chain() : basis.at(Site::kResidual);
  ends.is_centred = basis.form().is_centred && !is_folded;
}

Result<EndWeights> ModelFiles::ends() const {
  EndWeights ends;
  set_online_ends(basis(), ends);
  QUERN_ASSIGN(ends.embed, linear({Role::kEmbed, -1, -1}));
  if (store_->exists({Role::kPosEmbed, -1, -1})) {
    QUERN_ASSIGN(ends.pos_embed, linear({Role::kPosEmbed, -1, -1}));
  }
  QUERN_ASSIGN(ends.final_norm, norm({Role::kFinalNorm, -1, -1}, desc().final_norm));
  const WeightId head{Role::kLmHead, -1, -1};
  if (!desc().tied_head) {
    QUERN_ASSIGN(ends.head, linear(head));
    return ends;
  }
  ends.head = in_runtime_form(ends.embed);
  if (store_->exists(head, Part::kBias)) {
    QUERN_ASSIGN(const Matrix<float> bias, store_->load(head, Part::kBias));
    ends.head.bias.assign(bias.data(), bias.data() + bias.cols());
  }
  return ends;
}

std::string ModelFiles::digest() const {
  constexpr size_t kSample = 4096;
  Digest digest;
  digest.add(store_->checkpoint().config().dump());
  for (const TensorInfo& tensor : store_->checkpoint().tensors()) {
    digest.add(fmt::format("{} {} {} {}", tensor.name, dtype_name(tensor.dtype), tensor.block_type,
                           to_string(tensor.shape)));
    digest.add(tensor.bytes, std::min(kSample, tensor.n_bytes));
  }
  return digest.hex();
}

uint64_t ModelFiles::weight_bytes() const { return store_->checkpoint().file_bytes(); }

double ModelFiles::bpw() const {
  return 8.0 * static_cast<double>(weight_bytes()) / static_cast<double>(n_params());
}

double ModelFiles::linear_bpw() const {
  double bits = 0, weights = 0;
  for (const WeightId& id : store_->weight_ids()) {
    if (id.layer < 0 || !is_linear(id.role) || !store_->exists(id)) continue;
    const Shape shape = store_->shape(id);
    const auto n = static_cast<double>(shape[0]) * static_cast<double>(shape[1]);
    weights += n;
    if (const PackedTensor* coded = store_->coded(id)) {
      const auto planes = coded->codec->planes(coded->n_out, coded->n_in);
      for (size_t i = 0; planes && i < planes->size(); ++i) {
        bits += 8.0 * static_cast<double>((*planes)[i].n_bytes());
      }
    } else {
      const TensorInfo& tensor = store_->stored(id);
      bits += n * 8.0 * static_cast<double>(tensor.n_bytes) /
              static_cast<double>(element_count(tensor.shape).value_or(1));
    }
  }
  return weights > 0 ? bits / weights : 0;
}

}  // namespace quern
