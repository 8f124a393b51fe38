// SPDX-License-Identifier: Apache-2.0
// What the families share: most decoders are Llama's with a few changes, so they read this
// description, change it, and name their tensors by the same scheme.
#pragma once

#include <string>
#include <string_view>

#include "model/archs/arch.h"
#include "model/archs/config_reader.h"
#include "model/archs/rope.h"

namespace quern {

// What a family takes where config.json is silent.
struct DecoderDefaults {
  int64_t d_head = 0;  // 0: hidden_size / num_attention_heads
  double norm_eps = 1e-6;
  RopeOptions rope;  // d_head and n_context are filled in
  std::string_view activation_key = "hidden_act";
  std::string_view activation = "silu";
  bool tied = false;
};

// Equal layers: RMS norms before attention and before a gated MLP of intermediate_size, rotary
// positions, no bias, no window, no experts.
ModelDesc read_decoder(ConfigReader& reader, const DecoderDefaults& defaults);

// n_experts and top_k of every layer; the experts' width is `d_ffn`.
void set_experts(ConfigReader& reader, MlpDesc& mlp, std::string_view n_experts_key, int64_t d_ffn);

// The width of a head, hidden_size / num_attention_heads, which must divide.
int64_t head_width(ConfigReader& reader, int64_t d_model, int64_t n_heads);

std::string_view part_suffix(Part part);  // ".weight", ".bias"

// Tensors named as Llama names them: model.layers.{i}.self_attn.q_proj.weight, ...
WeightSource locate_llama_like(const ModelDesc& model, const WeightId& id, Part part);

}  // namespace quern
