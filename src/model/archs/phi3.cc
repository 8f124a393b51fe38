// SPDX-License-Identifier: Apache-2.0
// Phi 3 and 4: Llama with q, k, v in one tensor and gate, up in another, an optional window, and
// rotary embeddings that may turn a part of each head and stretch by length (longrope).
#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_phi3(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model =
      read_decoder(reader, {.norm_eps = 1e-5, .rope = {.partial = 1, .original_context = 4096}});
  model.arch = "phi3";
  const int64_t window = reader.integer_or("sliding_window", 1, kMaxContext, 0);
  for (LayerDesc& layer : model.layers) layer.attention.window = window;
  QUERN_TRY(reader.status());
  return model;
}

WeightSource locate_phi3(const ModelDesc& model, const WeightId& id, Part part) {
  if (id.layer < 0) return locate_llama_like(model, id, part);
  const LayerDesc& layer = model.layers[static_cast<size_t>(id.layer)];
  const int64_t n_q = layer.attention.n_heads * layer.attention.d_head;
  const int64_t n_kv = layer.attention.n_kv_heads * layer.attention.d_head;
  const int64_t d_ffn = layer.mlp.d_ffn;
  const std::string qkv = fmt::format("model.layers.{}.self_attn.qkv_proj.weight", id.layer);
  const std::string gate_up = fmt::format("model.layers.{}.mlp.gate_up_proj.weight", id.layer);
  switch (id.role) {
    case Role::kQ:
      return {.tensor = qkv, .first = 0, .stored_rows = n_q + 2 * n_kv};
    case Role::kK:
      return {.tensor = qkv, .first = n_q, .stored_rows = n_q + 2 * n_kv};
    case Role::kV:
      return {.tensor = qkv, .first = n_q + n_kv, .stored_rows = n_q + 2 * n_kv};
    case Role::kGate:
      return {.tensor = gate_up, .first = 0, .stored_rows = 2 * d_ffn};
    case Role::kUp:
      return {.tensor = gate_up, .first = d_ffn, .stored_rows = 2 * d_ffn};
    default:
      return locate_llama_like(model, id, part);
  }
}

constexpr std::string_view kPhi3Names[] = {"Phi3ForCausalLM"};

}  // namespace

extern const Arch arch_phi3;
constinit const Arch arch_phi3 = {"phi3", kPhi3Names, "model.", describe_phi3, locate_phi3};

}  // namespace quern
