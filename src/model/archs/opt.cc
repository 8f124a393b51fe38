// SPDX-License-Identifier: Apache-2.0
// OPT: learned positions whose table starts two rows late, LayerNorm before each part, ReLU. The
// 350M model (norms after each part, a narrower embedding) is declined.
#include <cmath>

#include "model/archs/decoder.h"

namespace quern {
namespace {

constexpr int64_t kPositionOffset = 2;

void decline_variants(ConfigReader& reader, int64_t d_model) {
  const int64_t width = reader.integer_or("word_embed_proj_dim", 1, kMaxWidth, d_model);
  if (width != d_model) {
    reader.refuse(
        "key 'word_embed_proj_dim': got {}, expected hidden_size {}; projected "
        "embeddings are not supported",
        width, d_model);
  }
  if (!reader.flag_or("do_layer_norm_before", true)) {
    reader.refuse("key 'do_layer_norm_before': got false; norms after a part are not supported");
  }
  if (reader.flag_or("_remove_final_layer_norm", false)) {
    reader.refuse("key '_remove_final_layer_norm': got true, which is not supported");
  }
  if (!reader.flag_or("layer_norm_elementwise_affine", true)) {
    reader.refuse("key 'layer_norm_elementwise_affine': got false, which is not supported");
  }
}

Result<ModelDesc> describe_opt(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model;
  model.arch = "opt";
  model.d_model = reader.integer("hidden_size", 1, kMaxWidth);
  model.n_vocab = reader.integer("vocab_size", 1, kMaxVocab);
  model.n_context = reader.integer("max_position_embeddings", 1, kMaxWidth);
  model.n_positions = model.n_context + kPositionOffset;
  model.pos_offset = kPositionOffset;
  model.positions = PositionKind::kLearned;
  model.tied_head = reader.flag_or("tie_word_embeddings", true);
  read_special_ids(reader, model);
  decline_variants(reader, model.d_model);

  LayerDesc layer;
  AttentionDesc& attention = layer.attention;
  attention.n_heads = reader.integer("num_attention_heads", 1, kMaxHeads);
  attention.n_kv_heads = attention.n_heads;
  attention.d_head = head_width(reader, model.d_model, attention.n_heads);
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.d_head));
  const bool bias = reader.flag_or("enable_bias", true);
  attention.qkv_bias = attention.o_bias = layer.mlp.bias = bias;
  layer.mlp.d_ffn = reader.integer("ffn_dim", 1, kMaxWidth);
  layer.mlp.activation = reader.activation_or("activation_function", "relu");
  layer.mlp.gated = false;
  layer.attn_norm = layer.mlp_norm =
      model.final_norm = {.kind = NormKind::kLayer, .eps = 1e-5, .has_bias = true};
  const int64_t n_layers = reader.integer("num_hidden_layers", 1, kMaxLayers);
  QUERN_TRY(reader.status());
  model.layers.assign(static_cast<size_t>(n_layers), layer);
  return model;
}

WeightSource locate_opt(const ModelDesc&, const WeightId& id, Part part) {
  const std::string_view suffix = part_suffix(part);
  const auto in_layer = [&](std::string_view name) -> WeightSource {
    return {fmt::format("model.decoder.layers.{}.{}{}", id.layer, name, suffix)};
  };
  switch (id.role) {
    case Role::kEmbed:
      return {"model.decoder.embed_tokens.weight"};
    case Role::kPosEmbed:
      return {"model.decoder.embed_positions.weight"};
    case Role::kFinalNorm:
      return {fmt::format("model.decoder.final_layer_norm{}", suffix)};
    case Role::kAttnNorm:
      return in_layer("self_attn_layer_norm");
    case Role::kQ:
      return in_layer("self_attn.q_proj");
    case Role::kK:
      return in_layer("self_attn.k_proj");
    case Role::kV:
      return in_layer("self_attn.v_proj");
    case Role::kO:
      return in_layer("self_attn.out_proj");
    case Role::kMlpNorm:
      return in_layer("final_layer_norm");
    case Role::kUp:
      return in_layer("fc1");
    case Role::kDown:
      return in_layer("fc2");
    default:
      return {"lm_head.weight"};
  }
}

constexpr std::string_view kOptNames[] = {"OPTForCausalLM"};

}  // namespace

extern const Arch arch_opt;
constinit const Arch arch_opt = {"opt", kOptNames, "model.", describe_opt, locate_opt};

}  // namespace quern
