// SPDX-License-Identifier: Apache-2.0
// GPT-2: learned positions, LayerNorm, biases everywhere, one tensor for q, k, v, and matrices
// stored as [n_in, n_out].
#include <cmath>

#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_gpt2(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model;
  model.arch = "gpt2";
  model.d_model = reader.integer(reader.either("n_embd", "hidden_size"), 1, kMaxWidth);
  model.n_vocab = reader.integer("vocab_size", 1, kMaxVocab);
  model.n_positions =
      reader.integer(reader.either("n_positions", "max_position_embeddings"), 1, kMaxWidth);
  model.n_context = model.n_positions;
  model.positions = PositionKind::kLearned;
  model.tied_head = reader.flag_or("tie_word_embeddings", true);
  read_special_ids(reader, model);

  LayerDesc layer;
  AttentionDesc& attention = layer.attention;
  attention.n_heads = reader.integer(reader.either("n_head", "num_attention_heads"), 1, kMaxHeads);
  attention.n_kv_heads = attention.n_heads;
  attention.d_head = head_width(reader, model.d_model, attention.n_heads);
  attention.qkv_bias = attention.o_bias = true;
  const double width = static_cast<double>(attention.d_head);
  const double scale = reader.flag_or("scale_attn_weights", true) ? 1 / std::sqrt(width) : 1;

  layer.mlp.d_ffn = reader.integer_or("n_inner", 1, kMaxWidth, 4 * model.d_model);
  layer.mlp.activation = reader.activation_or("activation_function", "gelu_new");
  layer.mlp.gated = false;
  layer.mlp.bias = true;
  layer.attn_norm = layer.mlp_norm =
      model.final_norm = {.kind = NormKind::kLayer,
                          .eps = reader.number_or("layer_norm_epsilon", 0, 1, 1e-5),
                          .has_bias = true};
  if (reader.flag_or("add_cross_attention", false)) {
    reader.refuse("key 'add_cross_attention': got true; only decoders alone are supported");
  }
  const bool by_depth = reader.flag_or("scale_attn_by_inverse_layer_idx", false);
  const int64_t n_layers =
      reader.integer(reader.either("n_layer", "num_hidden_layers"), 1, kMaxLayers);
  QUERN_TRY(reader.status());
  model.layers.assign(static_cast<size_t>(n_layers), layer);
  for (int64_t i = 0; i < n_layers; ++i) {
    model.layers[static_cast<size_t>(i)].attention.scale =
        by_depth ? scale / static_cast<double>(i + 1) : scale;
  }
  return model;
}

WeightSource locate_gpt2(const ModelDesc& model, const WeightId& id, Part part) {
  const std::string_view suffix = part_suffix(part);
  const auto in_layer = [&](std::string_view name) {
    return fmt::format("transformer.h.{}.{}{}", id.layer, name, suffix);
  };
  const int64_t n = model.d_model;
  const bool is_matrix = part == Part::kWeight;
  switch (id.role) {
    case Role::kEmbed:
      return {"transformer.wte.weight"};
    case Role::kPosEmbed:
      return {"transformer.wpe.weight"};
    case Role::kFinalNorm:
      return {fmt::format("transformer.ln_f{}", suffix)};
    case Role::kLmHead:
      return {"lm_head.weight"};
    case Role::kAttnNorm:
      return {in_layer("ln_1")};
    case Role::kMlpNorm:
      return {in_layer("ln_2")};
    case Role::kO:
      return {.tensor = in_layer("attn.c_proj"), .transposed = is_matrix};
    case Role::kUp:
      return {.tensor = in_layer("mlp.c_fc"), .transposed = is_matrix};
    case Role::kDown:
      return {.tensor = in_layer("mlp.c_proj"), .transposed = is_matrix};
    default:
      break;
  }
  const int64_t place = id.role == Role::kQ ? 0 : id.role == Role::kK ? 1 : 2;
  return {.tensor = in_layer("attn.c_attn"),
          .first = place * n,
          .stored_rows = 3 * n,
          .transposed = is_matrix};
}

constexpr std::string_view kGpt2Names[] = {"GPT2LMHeadModel"};

}  // namespace

extern const Arch arch_gpt2;
constinit const Arch arch_gpt2 = {"gpt2", kGpt2Names, "transformer.", describe_gpt2, locate_gpt2};

}  // namespace quern
