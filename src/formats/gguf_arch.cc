// SPDX-License-Identifier: Apache-2.0
#include "formats/gguf_arch.h"

#include <charconv>

#include "formats/gguf_config.h"

namespace quern {
namespace {

using enum GgufTransform;
using Rule = GgufTensorRule;

constexpr Rule kLlamaWhole[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

constexpr Rule kLlamaLayer[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj", kUnpermuteQ},
    {"attn_k", "self_attn.k_proj", kUnpermuteK},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

constexpr Rule kMixtralLayer[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj", kUnpermuteQ},
    {"attn_k", "self_attn.k_proj", kUnpermuteK},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate_inp", "block_sparse_moe.gate"},
    {"ffn_gate_exps", "block_sparse_moe.experts.{}.w1", kExperts},
    {"ffn_down_exps", "block_sparse_moe.experts.{}.w2", kExperts},
    {"ffn_up_exps", "block_sparse_moe.experts.{}.w3", kExperts},
};

constexpr Rule kQwenLayer[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.experts.{}.gate_proj", kExperts},
    {"ffn_up_exps", "mlp.experts.{}.up_proj", kExperts},
    {"ffn_down_exps", "mlp.experts.{}.down_proj", kExperts},
};

constexpr Rule kGemmaWhole[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm", kGainMinusOne},
    {"output", "lm_head"},
};

constexpr Rule kGemma2Layer[] = {
    {"attn_norm", "input_layernorm", kGainMinusOne},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"post_attention_norm", "post_attention_layernorm", kGainMinusOne},
    {"ffn_norm", "pre_feedforward_layernorm", kGainMinusOne},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"post_ffw_norm", "post_feedforward_layernorm", kGainMinusOne},
};

constexpr Rule kPhi3Layer[] = {
    {"attn_norm", "input_layernorm"},    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_up", "mlp.gate_up_proj"},      {"ffn_down", "mlp.down_proj"},
};

constexpr Rule kGpt2Whole[] = {
    {"token_embd", "transformer.wte"},
    {"position_embd", "transformer.wpe"},
    {"output_norm", "transformer.ln_f"},
    {"output", "lm_head"},
};

constexpr Rule kGpt2Layer[] = {
    {"attn_norm", "ln_1"},
    {"attn_qkv", "attn.c_attn", kTranspose},
    {"attn_output", "attn.c_proj", kTranspose},
    {"ffn_norm", "ln_2"},
    {"ffn_up", "mlp.c_fc", kTranspose},
    {"ffn_down", "mlp.c_proj", kTranspose},
};

constexpr std::string_view kLayers = "model.layers.";

constexpr GgufArch kArchs[] = {
    {"llama", false, "LlamaForCausalLM", "llama", kLayers, kLlamaWhole, kLlamaLayer, finish_llama},
    {"llama", true, "MixtralForCausalLM", "mixtral", kLayers, kLlamaWhole, kMixtralLayer,
     finish_mixtral},
    {"qwen2", false, "Qwen2ForCausalLM", "qwen2", kLayers, kLlamaWhole, kQwenLayer, finish_qwen2},
    {"qwen3", false, "Qwen3ForCausalLM", "qwen3", kLayers, kLlamaWhole, kQwenLayer, finish_qwen3},
    {"qwen3moe", true, "Qwen3MoeForCausalLM", "qwen3_moe", kLayers, kLlamaWhole, kQwenLayer,
     finish_qwen3_moe},
    {"gemma2", false, "Gemma2ForCausalLM", "gemma2", kLayers, kGemmaWhole, kGemma2Layer,
     finish_gemma2},
    {"phi3", false, "Phi3ForCausalLM", "phi3", kLayers, kLlamaWhole, kPhi3Layer, finish_phi3},
    {"gpt2", false, "GPT2LMHeadModel", "gpt2", "transformer.h.", kGpt2Whole, kGpt2Layer,
     finish_gpt2},
};

const Rule* find_rule(std::span<const Rule> rules, std::string_view stem) {
  for (const Rule& rule : rules) {
    if (rule.stem == stem) return &rule;
  }
  return nullptr;
}

}  // namespace

Result<const GgufArch*> find_gguf_arch(const GgufMetadata& metadata) {
  QUERN_ASSIGN(const std::string_view type, metadata.string_or("general.type", "model"));
  if (type != "model") return error("general.type is '{}', expected 'model'", type);
  QUERN_ASSIGN(const std::string_view name, metadata.string("general.architecture"));
  bool is_known = false;
  std::string known;
  for (const GgufArch& arch : kArchs) {
    is_known = is_known || arch.name == name;
    if (known.find(arch.name) != known.npos && arch.is_moe) continue;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", arch.name);
  }
  if (!is_known) return error("architecture '{}' is not known, expected one of {}", name, known);
  QUERN_ASSIGN(const int64_t n_experts,
               metadata.integer_or(fmt::format("{}.expert_count", name), 0, 1 << 16, 0));
  for (const GgufArch& arch : kArchs) {
    if (arch.name == name && arch.is_moe == (n_experts > 0)) return &arch;
  }
  return error("architecture '{}' with {} experts is not known", name, n_experts);
}

std::optional<GgufPlace> place_gguf_tensor(const GgufArch& arch, std::string_view name,
                                           int64_t n_layers) {
  const size_t dot = name.rfind('.');
  if (dot == name.npos) return std::nullopt;
  const std::string_view part = name.substr(dot);
  if (part != ".weight" && part != ".bias") return std::nullopt;
  std::string_view stem = name.substr(0, dot);
  if (!stem.starts_with("blk.")) {
    const Rule* rule = find_rule(arch.whole, stem);
    if (rule == nullptr) return std::nullopt;
    return GgufPlace{fmt::format("{}{}", rule->name, part), rule->transform};
  }
  stem.remove_prefix(4);
  int64_t layer = -1;
  const auto [end, failure] = std::from_chars(stem.data(), stem.data() + stem.size(), layer);
  const size_t n_digits = static_cast<size_t>(end - stem.data());
  const bool canonical = failure == std::errc() && layer >= 0 && layer < n_layers &&
                         (n_digits == 1 || stem[0] != '0') && n_digits < stem.size() &&
                         stem[n_digits] == '.';
  if (!canonical) return std::nullopt;
  const Rule* rule = find_rule(arch.layer, stem.substr(n_digits + 1));
  if (rule == nullptr) return std::nullopt;
  return GgufPlace{fmt::format("{}{}.{}{}", arch.layer_prefix, layer, rule->name, part),
                   rule->transform};
}

const TensorInfo* find_gguf_tensor(const GgufContents& file, std::string_view name) {
  for (const TensorInfo& tensor : file.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

}  // namespace quern
