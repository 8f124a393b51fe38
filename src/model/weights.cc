// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <algorithm>
#include <filesystem>

#include "base/check.h"
#include "model/fuse.h"

namespace quern {
namespace {

// Columns of a transposed weight are gathered from strips of this many floats.
constexpr int64_t kStripFloats = 1 << 20;

const LayerDesc& layer_of(const ModelDesc& model, const WeightId& id) {
  QUERN_CHECK(id.layer >= 0 && id.layer < static_cast<int>(model.layers.size()));
  return model.layers[static_cast<size_t>(id.layer)];
}

int64_t row_count(const Shape& shape) { return shape[0]; }

// The stored row of weight row i.
int64_t stored_row(const WeightSource& source, int64_t i) {
  if (source.block == 0) return source.first + i;
  return source.first + i / source.block * source.stride + i % source.block;
}

// How many weight rows from i on lie in consecutive stored rows.
int64_t run_length(const WeightSource& source, int64_t i) {
  return source.block == 0 ? INT64_MAX : source.block - i % source.block;
}

// Where a weight lies in a checkpoint of the architecture; for what a change of basis added, where
// it would.
WeightSource place_of(const Arch& arch, const ModelDesc& model, const WeightId& id, Part part) {
  if (id.role == Role::kAttnSkip || id.role == Role::kMlpSkip) {
    return {fmt::format("quern.layers.{}.{}.weight", id.layer, role_name(id.role))};
  }
  WeightSource source = arch.locate(model, id, part);
  constexpr std::string_view kWeight = ".weight";
  if (part == Part::kBias && source.tensor.ends_with(kWeight)) {
    source.tensor.replace(source.tensor.size() - kWeight.size(), kWeight.size(), ".bias");
  }
  return source;
}

bool is_whole(const WeightSource& source, int64_t n_rows) {
  return source.first == 0 && source.block == 0 && !source.transposed &&
         (source.stored_rows == 0 || source.stored_rows == n_rows);
}

bool has_norm(const NormDesc& norm, Part part) {
  return norm.kind != NormKind::kNone && (part == Part::kWeight || norm.has_bias);
}

// One layer's weights; `part` asks for the weight itself or for its bias.
bool layer_has(const LayerDesc& layer, const WeightId& id, Part part) {
  const AttentionDesc& attention = layer.attention;
  const MlpDesc& mlp = layer.mlp;
  const bool is_bias = part == Part::kBias;
  const bool in_range =
      mlp.n_experts == 0 ? id.expert == -1 : id.expert >= 0 && id.expert < mlp.n_experts;
  switch (id.role) {
    case Role::kAttnNorm:
      return has_norm(layer.attn_norm, part);
    case Role::kAttnPostNorm:
      return has_norm(layer.attn_post_norm, part);
    case Role::kMlpNorm:
      return has_norm(layer.mlp_norm, part);
    case Role::kMlpPostNorm:
      return has_norm(layer.mlp_post_norm, part);
    case Role::kQNorm:
    case Role::kKNorm:
      return has_norm(attention.qk_norm, part);
    case Role::kQ:
    case Role::kK:
    case Role::kV:
      return !is_bias || attention.qkv_bias;
    case Role::kO:
      return !is_bias || attention.o_bias;
    case Role::kGate:
      return in_range && mlp.gated && (!is_bias || mlp.bias);
    case Role::kUp:
    case Role::kDown:
      return in_range && (!is_bias || mlp.bias);
    case Role::kRouter:
      return !is_bias && mlp.n_experts > 0;
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedDown:
      return !is_bias && mlp.d_ffn_shared > 0;
    case Role::kSharedRouter:
      return !is_bias && mlp.d_ffn_shared > 0 && mlp.shared_router;
    case Role::kAttnSkip:
      return !is_bias && layer.is_sliced() && !layer.parallel;
    case Role::kMlpSkip:
      return !is_bias && layer.is_sliced();
    default:
      return false;
  }
}

constexpr Role kBeforeMlp[] = {Role::kAttnNorm, Role::kQ,       Role::kK,     Role::kV,
                               Role::kQNorm,    Role::kKNorm,   Role::kO,     Role::kAttnPostNorm,
                               Role::kAttnSkip, Role::kMlpNorm, Role::kRouter};
constexpr Role kMlp[] = {Role::kGate, Role::kUp, Role::kDown};
constexpr Role kAfterMlp[] = {Role::kSharedRouter, Role::kSharedGate,  Role::kSharedUp,
                              Role::kSharedDown,   Role::kMlpPostNorm, Role::kMlpSkip};

Shape stored_shape(const Shape& shape, const WeightSource& source) {
  const int64_t rows = source.stored_rows == 0 ? shape[0] : source.stored_rows;
  if (shape.size() == 1) return {rows};
  return source.transposed ? Shape{shape[1], rows} : Shape{rows, shape[1]};
}

// The shape of the weight or, one row shorter in rank, of its bias.
Shape part_shape(const ModelDesc& model, const WeightId& id, Part part) {
  const Shape shape = weight_shape(model, id);
  return part == Part::kWeight ? shape : Shape{row_count(shape)};
}

}  // namespace

Shape weight_shape(const ModelDesc& model, const WeightId& id) {
  switch (id.role) {
    case Role::kEmbed:
      return {model.n_vocab, model.width_embed()};
    case Role::kLmHead:
      return {model.n_vocab, model.d_model};
    case Role::kPosEmbed:
      return {model.n_positions, model.width_embed()};
    case Role::kFinalNorm:
      return {model.d_model};
    default:
      break;
  }
  const LayerDesc& layer = layer_of(model, id);
  const AttentionDesc& attention = layer.attention;
  const MlpDesc& mlp = layer.mlp;
  const int64_t d_in = model.width_in(layer), d_mid = model.width_mid(layer),
                d_out = model.width_out(layer);
  switch (id.role) {
    case Role::kAttnNorm:
      return {d_in};
    case Role::kMlpNorm:
      return {d_mid};
    case Role::kAttnPostNorm:
    case Role::kMlpPostNorm:
      return {model.d_model};
    case Role::kQ:
      return {attention.n_heads * attention.d_head, d_in};
    case Role::kK:
    case Role::kV:
      return {attention.n_kv_heads * attention.d_head, d_in};
    case Role::kO:
      return {layer.parallel ? d_out : d_mid, attention.n_heads * attention.d_head};
    case Role::kQNorm:
    case Role::kKNorm:
      return {attention.d_head};
    case Role::kGate:
    case Role::kUp:
      return {mlp.d_ffn, d_mid};
    case Role::kDown:
      return {d_out, mlp.d_ffn};
    case Role::kRouter:
      return {mlp.n_experts, d_mid};
    case Role::kSharedGate:
    case Role::kSharedUp:
      return {mlp.d_ffn_shared, d_mid};
    case Role::kSharedDown:
      return {d_out, mlp.d_ffn_shared};
    case Role::kAttnSkip:
      return {d_mid, d_in};
    case Role::kMlpSkip:
      return {d_out, d_mid};
    default:
      return {1, d_mid};  // kSharedRouter
  }
}

bool has_weight(const ModelDesc& model, const WeightId& id, Part part) {
  const bool is_weight = part == Part::kWeight;
  switch (id.role) {
    case Role::kEmbed:
      return is_weight;
    case Role::kPosEmbed:
      return is_weight && model.positions == PositionKind::kLearned;
    case Role::kFinalNorm:
      return has_norm(model.final_norm, part);
    case Role::kLmHead:
      return is_weight ? !model.tied_head : model.head_bias;
    default:
      break;
  }
  if (id.layer < 0 || id.layer >= static_cast<int>(model.layers.size())) return false;
  return layer_has(model.layers[static_cast<size_t>(id.layer)], id, part);
}

Status for_each_weight(const ModelDesc& model,
                       const std::function<Status(const WeightId&)>& visit) {
  const auto visit_if = [&](const WeightId& id) -> Status {
    const bool exists = has_weight(model, id) || has_weight(model, id, Part::kBias);
    return exists ? visit(id) : Status();
  };
  QUERN_TRY(visit_if({Role::kEmbed}));
  QUERN_TRY(visit_if({Role::kPosEmbed}));
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
    for (Role role : kBeforeMlp) QUERN_TRY(visit_if({role, i}));
    const int n_experts = static_cast<int>(model.layers[static_cast<size_t>(i)].mlp.n_experts);
    for (int e = n_experts == 0 ? -1 : 0; e < n_experts; ++e) {
      for (Role role : kMlp) QUERN_TRY(visit_if({role, i, e}));
    }
    for (Role role : kAfterMlp) QUERN_TRY(visit_if({role, i}));
  }
  QUERN_TRY(visit_if({Role::kFinalNorm}));
  return visit_if({Role::kLmHead});
}

std::vector<WeightId> weight_ids(const ModelDesc& model) {
  std::vector<WeightId> ids;
  const Status done = for_each_weight(model, [&](const WeightId& id) -> Status {
    ids.push_back(id);
    return {};
  });
  QUERN_CHECK(done.has_value());
  return ids;
}

int64_t count_parameters(const ModelDesc& model) {
  int64_t total = 0;
  for (const WeightId& id : weight_ids(model)) {
    for (const Part part : {Part::kWeight, Part::kBias}) {
      if (has_weight(model, id, part)) total += *element_count(part_shape(model, id, part));
    }
  }
  return total;
}

Result<WeightStore> WeightStore::open(const std::string& path) {
  QUERN_ASSIGN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::open(path));
  return open(std::shared_ptr<const Checkpoint>(std::move(checkpoint)));
}

Result<WeightStore> WeightStore::open(std::shared_ptr<const Checkpoint> checkpoint) {
  WeightStore store;
  const std::string& path = checkpoint->path();
  auto arch = find_arch(checkpoint->config());
  if (!arch) return tl::unexpected<Error>(in_context(std::move(arch).error(), path));
  auto model = (*arch)->describe(checkpoint->config());
  if (!model) return tl::unexpected<Error>(in_context(std::move(model).error(), path));
  std::error_code failure;
  store.is_in_order_ = std::filesystem::is_directory(path, failure);
  auto packed = Packed::from_config(checkpoint->config(),
                                    [&](std::string_view name) { return checkpoint->find(name); });
  if (!packed) return tl::unexpected<Error>(in_context(std::move(packed).error(), path));
  if (auto fits = check_form(packed->basis, *model); !fits) {
    return tl::unexpected<Error>(in_context(fits.error(), path));
  }
  const ModelDesc original = *model;
  *model = in_basis(original, packed->basis);
  if (auto fits = check_basis(packed->basis, *model); !fits) {
    return tl::unexpected<Error>(in_context(fits.error(), path));
  }
  store.packed_ = *std::move(packed);
  store.checkpoint_ = std::move(checkpoint);
  store.arch_ = *arch;
  store.model_ = *std::move(model);
  // Checking while enumerating ends at the first tensor that the file lacks, so the list is never
  // longer than the file is.
  const Status checked = for_each_weight(store.model_, [&](const WeightId& id) -> Status {
    for (Part part : {Part::kWeight, Part::kBias}) {
      if (!store.exists(id, part)) continue;
      QUERN_TRY(store.check(id, part));
      store.n_parameters_ += *element_count(part_shape(store.model_, id, part));
    }
    store.ids_.push_back(id);
    return {};
  });
  if (!checked) return tl::unexpected<Error>(in_context(checked.error(), path));
  store.n_original_ = store.model_ == original ? store.n_parameters_ : count_parameters(original);
  return store;
}

const TensorInfo* WeightStore::find(const WeightSource& source) const {
  if (const TensorInfo* tensor = checkpoint_->find(source.tensor)) return tensor;
  std::string_view name = source.tensor;
  if (!name.starts_with(arch_->base_prefix)) return nullptr;
  return checkpoint_->find(name.substr(arch_->base_prefix.size()));
}

const PackedTensor* WeightStore::coded(const WeightId& id) const {
  if (packed_.empty()) return nullptr;
  const auto found = packed_.tensors.find(stored_name(id));
  return found == packed_.tensors.end() ? nullptr : &found->second;
}

std::string WeightStore::stored_name(const WeightId& id, Part part) const {
  const WeightSource source = place_of(*arch_, model_, id, part);
  if (is_whole(source, row_count(weight_shape(model_, id)))) return source.tensor;
  std::string_view stem = source.tensor, suffix;
  for (const std::string_view known : {std::string_view(".weight"), std::string_view(".bias")}) {
    if (stem.ends_with(known)) {
      stem.remove_suffix(known.size());
      suffix = known;
    }
  }
  const std::string expert = id.expert >= 0 ? fmt::format(".{}", id.expert) : "";
  return fmt::format("{}{}.{}{}", stem, expert, role_name(id.role), suffix);
}

// A model that quern wrote keeps a weight that was cut out of a shared tensor under its own name.
WeightSource WeightStore::locate(const WeightId& id, Part part) const {
  WeightSource source = place_of(*arch_, model_, id, part);
  if (packed_.empty() || find(source) != nullptr) return source;
  WeightSource own;
  own.tensor = stored_name(id, part);
  return own;
}

Status WeightStore::check(const WeightId& id, Part part) const {
  if (const PackedTensor* codes = part == Part::kWeight ? coded(id) : nullptr) {
    const Shape expected = weight_shape(model_, id);
    if (Shape{codes->n_out, codes->n_in} != expected) {
      return error("{}: coded as [{}, {}], expected {} as config.json implies", stored_name(id),
                   codes->n_out, codes->n_in, to_string(expected));
    }
    QUERN_TRY(find_codes(*checkpoint_, stored_name(id), *codes));
    QUERN_TRY(find_rounding(*checkpoint_, stored_name(id), *codes));
    return {};
  }
  const WeightSource source = locate(id, part);
  const TensorInfo* tensor = find(source);
  const Shape expected = stored_shape(part_shape(model_, id, part), source);
  if (tensor == nullptr) {
    return error("tensor '{}' ({}) is missing, expected shape {}", source.tensor, to_string(id),
                 to_string(expected));
  }
  if (tensor->shape != expected) {
    return error("tensor '{}' ({}): got shape {}, expected {} as config.json implies", tensor->name,
                 to_string(id), to_string(tensor->shape), to_string(expected));
  }
  if (tensor->block_type == 0 && !is_plain_float(tensor->dtype)) {
    return error("tensor '{}' ({}): got dtype {}, expected F64, F32, F16 or BF16", tensor->name,
                 to_string(id), dtype_name(tensor->dtype));
  }
  return {};
}

const TensorInfo& WeightStore::stored(const WeightId& id, Part part) const {
  QUERN_CHECK(exists(id, part));
  return *find(locate(id, part));
}

const TensorInfo* WeightStore::direct(const WeightId& id, Part part) const {
  QUERN_CHECK(exists(id, part));
  if (!is_in_order_) return nullptr;
  const WeightSource source = locate(id, part);
  return is_whole(source, row_count(weight_shape(model_, id))) ? find(source) : nullptr;
}

Result<Matrix<float>> WeightStore::load(const WeightId& id, Part part) const {
  QUERN_CHECK(exists(id, part));
  const Shape shape = part_shape(model_, id, part);
  if (shape.size() == 2) {
    Matrix<float> weight(shape[0], shape[1]);
    QUERN_TRY(load_rows(id, 0, shape[0], weight.data()));
    return weight;
  }
  const WeightSource source = locate(id, part);
  const TensorInfo& tensor = *find(source);
  Matrix<float> all(1, tensor.shape[0]);
  QUERN_TRY(checkpoint_->read_rows(tensor, 0, 1, all.data()));
  Matrix<float> vector(1, shape[0]);
  for (int64_t i = 0; i < shape[0]; ++i) vector(0, i) = all(0, stored_row(source, i));
  return vector;
}

Status WeightStore::load_rows(const WeightId& id, int64_t first, int64_t n, float* dst) const {
  QUERN_CHECK(exists(id));
  const Shape shape = weight_shape(model_, id);
  QUERN_CHECK(shape.size() == 2 && first >= 0 && n >= 0 && n <= shape[0] - first);
  const WeightSource source = locate(id, Part::kWeight);
  const TensorInfo& tensor = *find(source);
  if (source.transposed) return gather_columns(tensor, source, first, {dst, n, shape[1]});
  for (int64_t i = first; i < first + n;) {
    const int64_t run = std::min(run_length(source, i), first + n - i);
    QUERN_TRY(checkpoint_->read_rows(tensor, stored_row(source, i), run, dst));
    dst += run * shape[1];
    i += run;
  }
  return {};
}

// dst(i, j) = stored(j, stored_row(first + i)), a strip of stored rows at a time.
Status WeightStore::gather_columns(const TensorInfo& tensor, const WeightSource& source,
                                   int64_t first, MatrixView<float> dst) const {
  const int64_t width = tensor.shape[1];
  const int64_t n_strip = std::clamp<int64_t>(kStripFloats / width, 1, dst.cols);
  Matrix<float> strip(n_strip, width);
  for (int64_t j0 = 0; j0 < dst.cols; j0 += n_strip) {
    const int64_t n = std::min(n_strip, dst.cols - j0);
    QUERN_TRY(checkpoint_->read_rows(tensor, j0, n, strip.data()));
    for (int64_t i = 0; i < dst.rows; ++i) {
      const int64_t column = stored_row(source, first + i);
      for (int64_t j = 0; j < n; ++j) dst(i, j0 + j) = strip(j, column);
    }
  }
  return {};
}

}  // namespace quern
