// SPDX-License-Identifier: Apache-2.0
// Gemma 2: norms before and after each part, stored as gain - 1; every other layer sees a window
// only; scores and logits pass a soft cap; the embedding is scaled by sqrt(d_model). The scale is
// exact here, where a bfloat16 run of the original rounds it to bfloat16.
#include <cmath>

#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_gemma2(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {.d_head = 256,
                                          .activation_key = "hidden_activation",
                                          .activation = "gelu_pytorch_tanh",
                                          .tied = true});
  model.arch = "gemma2";
  model.embed_scale = std::sqrt(static_cast<double>(model.d_model));
  model.final_norm.gain_offset = 1;
  // Null switches a cap off; absence means the published model's cap.
  const auto cap = [&](std::string_view key, double fallback) {
    const bool is_null = reader.config().contains(key) && !reader.has(key);
    return is_null ? 0 : reader.number_or(key, 1e-3, 1e6, fallback);
  };
  model.logit_soft_cap = cap("final_logit_softcapping", 30);
  const double score_cap = cap("attn_logit_softcapping", 50);
  const double query_scalar = reader.number_or("query_pre_attn_scalar", 1e-3, 1e6, 256);
  const bool bias = reader.flag_or("attention_bias", false);
  if (reader.flag_or("use_bidirectional_attention", false)) {
    reader.refuse("key 'use_bidirectional_attention': got true; only causal models are supported");
  }
  for (LayerDesc& layer : model.layers) {
    layer.attn_norm.gain_offset = 1;
    layer.attn_post_norm = layer.mlp_norm = layer.mlp_post_norm = layer.attn_norm;
    layer.attention.scale = 1 / std::sqrt(query_scalar);
    layer.attention.soft_cap = score_cap;
    layer.attention.qkv_bias = layer.attention.o_bias = bias;
  }
  const int64_t window = reader.integer_or("sliding_window", 1, kMaxContext, 4096);
  set_windows(reader, model, window, [](int64_t layer) { return layer % 2 == 0; });
  QUERN_TRY(reader.status());
  return model;
}

WeightSource locate_gemma2(const ModelDesc& model, const WeightId& id, Part part) {
  const auto norm = [&](std::string_view name) -> WeightSource {
    return {fmt::format("model.layers.{}.{}.weight", id.layer, name)};
  };
  switch (id.role) {
    case Role::kAttnPostNorm:
      return norm("post_attention_layernorm");
    case Role::kMlpNorm:
      return norm("pre_feedforward_layernorm");
    case Role::kMlpPostNorm:
      return norm("post_feedforward_layernorm");
    default:
      return locate_llama_like(model, id, part);
  }
}

constexpr std::string_view kGemma2Names[] = {"Gemma2ForCausalLM"};

}  // namespace

extern const Arch arch_gemma2;
constinit const Arch arch_gemma2 = {"gemma2", kGemma2Names, "model.", describe_gemma2,
                                    locate_gemma2};

}  // namespace quern
