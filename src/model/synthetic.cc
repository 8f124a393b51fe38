// SPDX-License-Identifier: Apache-2.0
#include "model/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "base/parallel.h"
#include "base/random.h"
#include "codecs/measure.h"
#include "model/fuse.h"
#include "model/weights.h"

namespace quern {
namespace {

constexpr int64_t kPatternRows = 32;
constexpr std::pair<std::string_view, DType> kFloats[] = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};

// What a weight owns: planes, or one array of floats.
struct Bytes {
  std::shared_ptr<const Codec> codec;
  std::optional<CodedMatrix> codes;
  AlignedVector<std::byte> dense;
};

// dst <- src, src, src, ... ; rows are the slowest axis of all that has rows, so that this repeats
// rows, and copies once what has the size of src.
void repeat(std::span<const std::byte> src, std::span<std::byte> dst) {
  for (size_t at = 0; at < dst.size(); at += src.size()) {
    std::memcpy(dst.data() + at, src.data(), std::min(src.size(), dst.size() - at));
  }
}

// A codec, or a float type, and the rows of each width that are repeated.
class Filler {
 public:
  static Result<Filler> make(const std::string& text, uint64_t seed, Activations activations) {
    Filler filler;
    filler.activations_ = activations;
    filler.seed_ = seed;
    for (const auto& [name, dtype] : kFloats) {
      if (text != name) continue;
      filler.dtype_ = dtype;
      return filler;
    }
    QUERN_ASSIGN(filler.codec_, make_codec(text));
    return filler;
  }

  // Rounds the inputs of what is filled from now on.
  Status round(const std::string& text) {
    if (text.empty()) return {};
    if (codec_ == nullptr) return usage_error("act rounds the inputs of coded matrices");
    QUERN_ASSIGN(std::shared_ptr<const ActQuantizer> act, make_act(text));
    if (act->n_ranges(1) > 0) {
      return usage_error("{} has a static scale, and nothing was calibrated", act->spec());
    }
    rounding_ = std::make_shared<const ActRounding>(ActRounding{std::move(act), {}});
    return {};
  }

  // Makes the rows of this width, unless it did before.
  Status prepare(int64_t n_in) {
    if (patterns_.contains(n_in)) return {};
    int64_t n_rows = kPatternRows;
    if (codec_ != nullptr) {
      n_rows = round_up(round_up(n_rows, codec_->block_rows()), codec_->decode_unit());
    }
    Matrix<float> w(n_rows, n_in);
    Random random(seed_);
    const double deviation = 1 / std::sqrt(static_cast<double>(n_in));
    for (int64_t i = 0; i < n_rows * n_in; ++i) {
      w.data()[i] = static_cast<float>(random.gaussian() * deviation);
    }
    QUERN_ASSIGN(Bytes bytes, allocate(n_rows, n_in));
    if (codec_ != nullptr) {
      Matrix<float> w_hat(n_rows, n_in);
      code_to_nearest(*codec_, w.view(), bytes.codes->mutable_view(), w_hat.view());
    } else {
      convert_from_float(w.data(), n_rows * n_in, dtype_, bytes.dense.data());
    }
    patterns_.emplace(n_in, std::move(bytes));
    return {};
  }

  // Of a width that was prepared. From any thread.
  Result<LinearWeight> fill(int64_t n_out, int64_t n_in) const {
    const Bytes& pattern = patterns_.at(n_in);
    QUERN_ASSIGN(Bytes bytes, allocate(n_out, n_in));
    if (codec_ != nullptr) {
      const MutableCodes to = bytes.codes->mutable_view();
      for (size_t p = 0; p < to.planes.size(); ++p) {
        repeat(pattern.codes->plane(p), {to.planes[p], bytes.codes->plane(p).size()});
      }
    } else {
      repeat(pattern.dense, bytes.dense);
    }
    const auto owner = std::make_shared<const Bytes>(std::move(bytes));
    LinearWeight weight;
    weight.n_out = n_out;
    weight.n_in = n_in;
    weight.dtype = dtype_;
    weight.codec = codec_.get();
    weight.activations = activations_;
    if (codec_ != nullptr) {
      weight.codes = owner->codes->view();
    } else {
      weight.dense = owner->dense.data();
    }
    weight.owner = owner;
    if (codec_ == nullptr) return weight;
    weight.rounding = rounding_;
    weight = in_runtime_form(std::move(weight), *codec_);
    QUERN_TRY(check_rounding(weight));
    return weight;
  }

 private:
  Result<Bytes> allocate(int64_t n_out, int64_t n_in) const {
    Bytes bytes{codec_, {}, {}};
    if (codec_ != nullptr) {
      QUERN_ASSIGN(bytes.codes, CodedMatrix::create(*codec_, n_out, n_in));
    } else {
      bytes.dense.resize(static_cast<size_t>(n_out * n_in * dtype_bits(dtype_) / 8));
    }
    return bytes;
  }

  std::shared_ptr<const Codec> codec_;  // null: plain floats
  DType dtype_ = DType::kF32;
  uint64_t seed_ = 0;
  Activations activations_ = Activations::kExact;
  std::shared_ptr<const ActRounding> rounding_;
  std::map<int64_t, Bytes> patterns_;
};

NormWeight ones(const NormDesc& desc, int64_t n) {
  NormWeight norm;
  if (desc.kind == NormKind::kNone) return norm;
  norm.gain.assign(static_cast<size_t>(n), 1.0f);
  if (desc.has_bias) norm.bias.assign(static_cast<size_t>(n), 0.0f);
  return norm;
}

// Everything but the matrices.
ModelParts bare_parts(ModelDesc desc) {
  ModelParts parts;
  for (const LayerDesc& layer_desc : desc.layers) {
    LayerWeights layer;
    layer.experts.resize(static_cast<size_t>(std::max<int64_t>(1, layer_desc.mlp.n_experts)));
    layer.attn_norm = ones(layer_desc.attn_norm, desc.d_model);
    layer.attn_post_norm = ones(layer_desc.attn_post_norm, desc.d_model);
    layer.mlp_norm = ones(layer_desc.mlp_norm, desc.d_model);
    layer.mlp_post_norm = ones(layer_desc.mlp_post_norm, desc.d_model);
    layer.q_norm = ones(layer_desc.attention.qk_norm, layer_desc.attention.d_head);
    layer.k_norm = ones(layer_desc.attention.qk_norm, layer_desc.attention.d_head);
    parts.layers.push_back(std::move(layer));
  }
  parts.ends.final_norm = ones(desc.final_norm, desc.d_model);
  parts.desc = std::move(desc);
  return parts;
}

LinearWeight& weight_at(ModelParts& parts, const WeightId& id) {
  if (id.role == Role::kEmbed) return parts.ends.embed;
  if (id.role == Role::kPosEmbed) return parts.ends.pos_embed;
  if (id.role == Role::kLmHead) return parts.ends.head;
  return parts.layers[static_cast<size_t>(id.layer)].at(id.role, id.expert);
}

}  // namespace

Result<LinearWeight> synthetic_linear(const std::string& codec, int64_t n_out, int64_t n_in,
                                      uint64_t seed, Activations activations) {
  QUERN_ASSIGN(Filler filler, Filler::make(codec, seed, activations));
  QUERN_TRY(filler.prepare(n_in));
  return filler.fill(n_out, n_in);
}

Result<std::unique_ptr<Model>> synthetic_model(std::string_view shape,
                                               const SyntheticOptions& options) {
  QUERN_ASSIGN(ModelDesc desc, shape_desc(shape));
  desc.n_context = std::max(desc.n_context, options.n_context);
  const std::string& head_text = options.head_codec.empty() ? options.codec : options.head_codec;
  QUERN_ASSIGN(Filler layers, Filler::make(options.codec, options.seed, options.activations));
  QUERN_ASSIGN(Filler ends, Filler::make(head_text, options.seed, options.activations));
  QUERN_TRY(layers.round(options.act));
  ModelParts parts = bare_parts(std::move(desc));
  std::vector<WeightId> ids;
  for (const WeightId& id : weight_ids(parts.desc)) {
    if (!has_weight(parts.desc, id) || weight_shape(parts.desc, id).size() != 2) continue;
    QUERN_TRY((id.layer < 0 ? ends : layers).prepare(weight_shape(parts.desc, id)[1]));
    ids.push_back(id);
  }
  std::vector<Status> done(ids.size());
  parallel_for(static_cast<int64_t>(ids.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const WeightId& id = ids[static_cast<size_t>(i)];
      const Shape size = weight_shape(parts.desc, id);
      auto weight = (id.layer < 0 ? ends : layers).fill(size[0], size[1]);
      if (!weight) {
        done[static_cast<size_t>(i)] = tl::unexpected<Error>(weight.error());
        continue;
      }
      if (has_weight(parts.desc, id, Part::kBias)) {
        weight->bias.assign(static_cast<size_t>(size[0]), 0.0f);
      }
      // Rows of an embedding are read, and a tied one is multiplied too.
      const bool is_read = id.role == Role::kEmbed || id.role == Role::kPosEmbed;
      weight_at(parts, id) = is_read ? *std::move(weight) : in_runtime_form(*std::move(weight));
    }
  });
  for (const Status& status : done) QUERN_TRY(status);
  if (parts.desc.tied_head) parts.ends.head = in_runtime_form(parts.ends.embed);
  QUERN_TRY(check_basis(options.basis, parts.desc));
  set_online_ends(options.basis, parts.ends);
  for (size_t i = 0; i < parts.layers.size(); ++i) {
    parts.layers[i].online = online_operators(options.basis, parts.desc, static_cast<int>(i));
  }
  return Model::assemble(std::move(parts));
}

}  // namespace quern
