// SPDX-License-Identifier: Apache-2.0
#include "model/archs/decoder.h"

#include <cmath>

namespace quern {

int64_t head_width(ConfigReader& reader, int64_t d_model, int64_t n_heads) {
  const int64_t d_head = d_model / n_heads;
  if (d_model % n_heads != 0 || d_head > kMaxHeadWidth) {
    reader.refuse(
        "num_attention_heads: got {} heads for hidden_size {}, expected a divisor that "
        "leaves at most {}",
        n_heads, d_model, kMaxHeadWidth);
    return 1;
  }
  return d_head;
}

ModelDesc read_decoder(ConfigReader& reader, const DecoderDefaults& defaults) {
  ModelDesc model;
  model.d_model = reader.integer("hidden_size", 1, kMaxWidth);
  model.n_vocab = reader.integer("vocab_size", 1, kMaxVocab);
  model.n_context = reader.integer("max_position_embeddings", 1, kMaxContext);
  const int64_t n_layers = reader.integer("num_hidden_layers", 1, kMaxLayers);
  model.tied_head = reader.flag_or("tie_word_embeddings", defaults.tied);
  read_special_ids(reader, model);

  LayerDesc layer;
  AttentionDesc& attention = layer.attention;
  attention.n_heads = reader.integer("num_attention_heads", 1, kMaxHeads);
  attention.n_kv_heads = reader.integer_or("num_key_value_heads", 1, kMaxHeads, attention.n_heads);
  if (attention.n_heads % attention.n_kv_heads != 0) {
    reader.refuse("key 'num_key_value_heads': got {}, expected a divisor of {} heads",
                  attention.n_kv_heads, attention.n_heads);
  }
  attention.d_head = reader.integer_or("head_dim", 1, kMaxHeadWidth, defaults.d_head);
  if (attention.d_head == 0) {
    attention.d_head = head_width(reader, model.d_model, attention.n_heads);
  }
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.d_head));
  RopeOptions rope = defaults.rope;
  rope.d_head = attention.d_head;
  rope.n_context = model.n_context;
  attention.rope = read_rope(reader, rope);

  layer.mlp.d_ffn = reader.integer("intermediate_size", 1, kMaxWidth);
  layer.mlp.activation = reader.activation_or(defaults.activation_key, defaults.activation);
  const NormDesc norm{NormKind::kRms, reader.number_or("rms_norm_eps", 0, 1, defaults.norm_eps)};
  layer.attn_norm = layer.mlp_norm = model.final_norm = norm;
  // A refused config may hold any sizes: describe no layers then.
  if (reader.ok()) model.layers.assign(static_cast<size_t>(n_layers), layer);
  return model;
}

void set_experts(ConfigReader& reader, MlpDesc& mlp, std::string_view n_experts_key,
                 int64_t d_ffn) {
  mlp.n_experts = reader.integer(n_experts_key, 1, kMaxExperts);
  mlp.top_k = reader.integer("num_experts_per_tok", 1, mlp.n_experts);
  mlp.d_ffn = d_ffn;
}

std::string_view part_suffix(Part part) { return part == Part::kBias ? ".bias" : ".weight"; }

namespace {

std::string_view llama_name(Role role) {
  switch (role) {
    case Role::kAttnNorm:
      return "input_layernorm";
    case Role::kQ:
      return "self_attn.q_proj";
    case Role::kK:
      return "self_attn.k_proj";
    case Role::kV:
      return "self_attn.v_proj";
    case Role::kO:
      return "self_attn.o_proj";
    case Role::kQNorm:
      return "self_attn.q_norm";
    case Role::kKNorm:
      return "self_attn.k_norm";
    case Role::kMlpNorm:
      return "post_attention_layernorm";
    case Role::kGate:
      return "gate_proj";
    case Role::kUp:
      return "up_proj";
    case Role::kDown:
      return "down_proj";
    case Role::kRouter:
      return "mlp.gate";
    case Role::kSharedGate:
      return "mlp.shared_expert.gate_proj";
    case Role::kSharedUp:
      return "mlp.shared_expert.up_proj";
    case Role::kSharedDown:
      return "mlp.shared_expert.down_proj";
    case Role::kSharedRouter:
      return "mlp.shared_expert_gate";
    default:
      return "";
  }
}

bool is_mlp(Role role) { return role == Role::kGate || role == Role::kUp || role == Role::kDown; }

}  // namespace

WeightSource locate_llama_like(const ModelDesc&, const WeightId& id, Part part) {
  const std::string_view suffix = part_suffix(part);
  if (id.role == Role::kEmbed) return {fmt::format("model.embed_tokens{}", suffix)};
  if (id.role == Role::kFinalNorm) return {fmt::format("model.norm{}", suffix)};
  if (id.role == Role::kLmHead) return {fmt::format("lm_head{}", suffix)};
  std::string name = fmt::format("model.layers.{}.", id.layer);
  if (id.expert >= 0) {
    name += fmt::format("mlp.experts.{}.", id.expert);
  } else if (is_mlp(id.role)) {
    name += "mlp.";
  }
  name += llama_name(id.role);
  name += suffix;
  return {name};
}

}  // namespace quern
