// SPDX-License-Identifier: Apache-2.0
// GPT-NeoX (Pythia): rotary embeddings on a part of each head, attention and MLP side by side, and
// one tensor for q, k, v that holds them head by head.
#include <cmath>

#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_gpt_neox(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model;
  model.arch = "gpt_neox";
  model.d_model = reader.integer("hidden_size", 1, kMaxWidth);
  model.n_vocab = reader.integer("vocab_size", 1, kMaxVocab);
  model.n_context = reader.integer("max_position_embeddings", 1, kMaxContext);
  model.tied_head = reader.flag_or("tie_word_embeddings", false);
  read_special_ids(reader, model);

  LayerDesc layer;
  AttentionDesc& attention = layer.attention;
  attention.n_heads = reader.integer("num_attention_heads", 1, kMaxHeads);
  attention.n_kv_heads = attention.n_heads;
  attention.d_head = head_width(reader, model.d_model, attention.n_heads);
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.d_head));
  attention.qkv_bias = attention.o_bias = reader.flag_or("attention_bias", true);
  attention.rope = read_rope(reader, {.d_head = attention.d_head,
                                      .n_context = model.n_context,
                                      .theta_key = reader.either("rotary_emb_base", "rope_theta"),
                                      .partial = 0.25,
                                      .partial_key = "rotary_pct"});
  layer.mlp.d_ffn = reader.integer("intermediate_size", 1, kMaxWidth);
  layer.mlp.activation = reader.activation_or("hidden_act", "gelu");
  layer.mlp.gated = false;
  layer.mlp.bias = true;
  layer.parallel = reader.flag_or("use_parallel_residual", true);
  layer.attn_norm = layer.mlp_norm =
      model.final_norm = {.kind = NormKind::kLayer,
                          .eps = reader.number_or("layer_norm_eps", 0, 1, 1e-5),
                          .has_bias = true};
  const int64_t n_layers = reader.integer("num_hidden_layers", 1, kMaxLayers);
  QUERN_TRY(reader.status());
  model.layers.assign(static_cast<size_t>(n_layers), layer);
  return model;
}

WeightSource locate_gpt_neox(const ModelDesc& model, const WeightId& id, Part part) {
  const std::string_view suffix = part_suffix(part);
  const auto in_layer = [&](std::string_view name) {
    return fmt::format("gpt_neox.layers.{}.{}{}", id.layer, name, suffix);
  };
  switch (id.role) {
    case Role::kEmbed:
      return {"gpt_neox.embed_in.weight"};
    case Role::kFinalNorm:
      return {fmt::format("gpt_neox.final_layer_norm{}", suffix)};
    case Role::kLmHead:
      return {"embed_out.weight"};
    case Role::kAttnNorm:
      return {in_layer("input_layernorm")};
    case Role::kO:
      return {in_layer("attention.dense")};
    case Role::kMlpNorm:
      return {in_layer("post_attention_layernorm")};
    case Role::kUp:
      return {in_layer("mlp.dense_h_to_4h")};
    case Role::kDown:
      return {in_layer("mlp.dense_4h_to_h")};
    default:
      break;
  }
  const AttentionDesc& attention = model.layers[static_cast<size_t>(id.layer)].attention;
  const int64_t place = id.role == Role::kQ ? 0 : id.role == Role::kK ? 1 : 2;
  return {.tensor = in_layer("attention.query_key_value"),
          .first = place * attention.d_head,
          .block = attention.d_head,
          .stride = 3 * attention.d_head,
          .stored_rows = 3 * attention.n_heads * attention.d_head};
}

constexpr std::string_view kGptNeoxNames[] = {"GPTNeoXForCausalLM"};

}  // namespace

extern const Arch arch_gpt_neox;
constinit const Arch arch_gpt_neox = {"gpt_neox", kGptNeoxNames, "gpt_neox.", describe_gpt_neox,
                                      locate_gpt_neox};

}  // namespace quern
