// SPDX-License-Identifier: Apache-2.0
#include "model/archs/arch.h"
#include "model/synthetic.h"

namespace quern {
namespace {

struct ShapeRow {
  std::string_view name, arch;
  int64_t d_model, n_layers, n_heads, n_kv_heads, d_ffn, n_vocab, n_context;
  double rope_theta;
  bool tied_head;
};

// As the models' config.json have them.
constexpr ShapeRow kShapes[] = {
    {"tiny", "llama", 256, 6, 4, 2, 768, 4096, 1024, 1e4, true},  // the bundled model
    {"ref", "llama", 512, 8, 8, 4, 1536, 8192, 1024, 1e4, true},
    {"smollm-135m", "llama", 576, 30, 9, 3, 1536, 49152, 2048, 1e4, true},
    {"qwen-0.5b", "qwen2", 896, 24, 14, 2, 4864, 151936, 32768, 1e6, true},
    {"tinyllama", "llama", 2048, 22, 32, 4, 5632, 32000, 2048, 1e4, false},
    {"llama-3.2-1b", "llama", 2048, 16, 32, 8, 8192, 128256, 131072, 5e5, true},
    {"llama-7b", "llama", 4096, 32, 32, 32, 11008, 32000, 4096, 1e4, false},
    {"mistral-7b", "mistral", 4096, 32, 32, 8, 14336, 32000, 32768, 1e4, false},
    {"llama-3-8b", "llama", 4096, 32, 32, 8, 14336, 128256, 8192, 5e5, false},
    {"llama-13b", "llama", 5120, 40, 40, 40, 13824, 32000, 4096, 1e4, false},
};

}  // namespace

std::vector<std::string_view> model_shapes() {
  std::vector<std::string_view> names;
  for (const ShapeRow& row : kShapes) names.push_back(row.name);
  return names;
}

Result<ModelDesc> shape_desc(std::string_view name) {
  for (const ShapeRow& row : kShapes) {
    if (row.name != name) continue;
    const Json config = {{"model_type", row.arch},
                         {"hidden_size", row.d_model},
                         {"num_hidden_layers", row.n_layers},
                         {"num_attention_heads", row.n_heads},
                         {"num_key_value_heads", row.n_kv_heads},
                         {"head_dim", row.d_model / row.n_heads},
                         {"intermediate_size", row.d_ffn},
                         {"vocab_size", row.n_vocab},
                         {"max_position_embeddings", row.n_context},
                         {"rms_norm_eps", 1e-5},
                         {"rope_theta", row.rope_theta},
                         {"tie_word_embeddings", row.tied_head}};
    QUERN_ASSIGN(const Arch* arch, find_arch(config));
    return arch->describe(config);
  }
  return usage_error("no shape '{}'; the shapes are {}", name, fmt::join(model_shapes(), ", "));
}

}  // namespace quern
