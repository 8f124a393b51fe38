// SPDX-License-Identifier: Apache-2.0
// Qwen 2 (biases on q, k, v), Qwen 3 (norms on each head of q and k instead), and their mixtures of
// experts; Qwen 2's adds a shared expert behind a sigmoid gate.
#include <algorithm>

#include "model/archs/decoder.h"

namespace quern {
namespace {

int64_t read_window(ConfigReader& reader) {
  const int64_t window = reader.integer_or("sliding_window", 0, kMaxContext, 4096);
  return reader.flag_or("use_sliding_window", false) ? window : 0;
}

// The window, where it is in use, starts at layer max_window_layers.
void set_qwen_windows(ConfigReader& reader, ModelDesc& model) {
  const int64_t window = read_window(reader);
  const int64_t first = reader.integer_or("max_window_layers", 0, kMaxLayers, 28);
  set_windows(reader, model, window, [](int64_t) { return false; });
  if (reader.has("layer_types")) return;
  for (int64_t i = first; i < static_cast<int64_t>(model.layers.size()); ++i) {
    model.layers[static_cast<size_t>(i)].attention.window = window;
  }
}

// Qwen 3: one norm for every head of q, one for k; the biases of q, k, v and o are an option.
void set_qwen3_attention(ConfigReader& reader, ModelDesc& model) {
  const bool bias = reader.flag_or("attention_bias", false);
  for (LayerDesc& layer : model.layers) {
    layer.attention.qk_norm = layer.attn_norm;
    layer.attention.qkv_bias = layer.attention.o_bias = bias;
  }
}

Result<std::vector<bool>> sparse_layers(ConfigReader& reader, size_t n_layers) {
  const int64_t step = reader.integer_or("decoder_sparse_step", 1, kMaxLayers, 1);
  std::vector<bool> sparse(n_layers);
  for (size_t i = 0; i < n_layers; ++i) {
    sparse[i] = (static_cast<int64_t>(i) + 1) % step == 0;
  }
  const Json* dense = reader.array("mlp_only_layers");
  for (size_t i = 0; dense != nullptr && i < dense->size(); ++i) {
    const Json& entry = (*dense)[i];
    const int64_t layer = entry.is_number_integer() ? entry.get<int64_t>() : -1;
    if (layer < 0 || layer >= static_cast<int64_t>(n_layers)) {
      return error("config.json: key 'mlp_only_layers': entry {} is not a layer below {}", i,
                   n_layers);
    }
    sparse[static_cast<size_t>(layer)] = false;
  }
  return sparse;
}

Status set_qwen_experts(ConfigReader& reader, ModelDesc& model, int64_t d_ffn_shared) {
  const std::string_view key = reader.either("num_experts", "num_local_experts");
  const int64_t d_ffn = reader.integer("moe_intermediate_size", 1, kMaxWidth);
  const bool renormalise = reader.flag_or("norm_topk_prob", false);
  QUERN_ASSIGN(const std::vector<bool> sparse, sparse_layers(reader, model.layers.size()));
  for (size_t i = 0; i < model.layers.size(); ++i) {
    if (!sparse[i]) continue;
    MlpDesc& mlp = model.layers[i].mlp;
    set_experts(reader, mlp, key, d_ffn);
    mlp.renormalise = renormalise;
    mlp.d_ffn_shared = d_ffn_shared;
    mlp.shared_router = d_ffn_shared != 0;
  }
  return reader.status();
}

Result<ModelDesc> describe_qwen2(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {});
  model.arch = "qwen2";
  for (LayerDesc& layer : model.layers) layer.attention.qkv_bias = true;
  set_qwen_windows(reader, model);
  QUERN_TRY(reader.status());
  return model;
}

Result<ModelDesc> describe_qwen2_moe(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {});
  model.arch = "qwen2_moe";
  const bool bias = reader.flag_or("qkv_bias", true);
  for (LayerDesc& layer : model.layers) layer.attention.qkv_bias = bias;
  set_qwen_windows(reader, model);
  const int64_t shared = reader.integer("shared_expert_intermediate_size", 1, kMaxWidth);
  QUERN_TRY(reader.status());
  QUERN_TRY(set_qwen_experts(reader, model, shared));
  return model;
}

Result<ModelDesc> describe_qwen3(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {.d_head = 128});
  model.arch = "qwen3";
  set_qwen3_attention(reader, model);
  set_qwen_windows(reader, model);
  QUERN_TRY(reader.status());
  return model;
}

Result<ModelDesc> describe_qwen3_moe(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {});
  model.arch = "qwen3_moe";
  set_qwen3_attention(reader, model);
  const int64_t window = read_window(reader);  // of every layer
  for (LayerDesc& layer : model.layers) layer.attention.window = window;
  QUERN_TRY(reader.status());
  QUERN_TRY(set_qwen_experts(reader, model, 0));
  return model;
}

constexpr std::string_view kQwen2Names[] = {"Qwen2ForCausalLM"};
constexpr std::string_view kQwen2MoeNames[] = {"Qwen2MoeForCausalLM"};
constexpr std::string_view kQwen3Names[] = {"Qwen3ForCausalLM"};
constexpr std::string_view kQwen3MoeNames[] = {"Qwen3MoeForCausalLM"};

}  // namespace

extern const Arch arch_qwen2;
constinit const Arch arch_qwen2 = {"qwen2", kQwen2Names, "model.", describe_qwen2,
                                   locate_llama_like};
extern const Arch arch_qwen2_moe;
constinit const Arch arch_qwen2_moe = {"qwen2_moe", kQwen2MoeNames, "model.", describe_qwen2_moe,
                                       locate_llama_like};
extern const Arch arch_qwen3;
constinit const Arch arch_qwen3 = {"qwen3", kQwen3Names, "model.", describe_qwen3,
                                   locate_llama_like};
extern const Arch arch_qwen3_moe;
constinit const Arch arch_qwen3_moe = {"qwen3_moe", kQwen3MoeNames, "model.", describe_qwen3_moe,
                                       locate_llama_like};

}  // namespace quern
