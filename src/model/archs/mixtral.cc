// SPDX-License-Identifier: Apache-2.0
// Mixtral: Mistral with experts in every layer, their weights renormalised over the chosen ones.
// An expert's gate, up and down are called w1, w3 and w2.
#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_mixtral(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {.norm_eps = 1e-5, .rope = {.theta = 1e6}});
  model.arch = "mixtral";
  const int64_t window = reader.integer_or("sliding_window", 1, kMaxContext, 0);
  for (LayerDesc& layer : model.layers) {
    layer.attention.window = window;
    set_experts(reader, layer.mlp, "num_local_experts", layer.mlp.d_ffn);
    layer.mlp.renormalise = true;
  }
  QUERN_TRY(reader.status());
  return model;
}

WeightSource locate_mixtral(const ModelDesc& model, const WeightId& id, Part part) {
  if (id.role == Role::kRouter) {
    return {fmt::format("model.layers.{}.block_sparse_moe.gate.weight", id.layer)};
  }
  if (id.expert < 0) return locate_llama_like(model, id, part);
  const std::string_view name = id.role == Role::kGate ? "w1" : id.role == Role::kUp ? "w3" : "w2";
  return {fmt::format("model.layers.{}.block_sparse_moe.experts.{}.{}.weight", id.layer, id.expert,
                      name)};
}

constexpr std::string_view kMixtralNames[] = {"MixtralForCausalLM"};

}  // namespace

extern const Arch arch_mixtral;
constinit const Arch arch_mixtral = {"mixtral", kMixtralNames, "model.", describe_mixtral,
                                     locate_mixtral};

}  // namespace quern
