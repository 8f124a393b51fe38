// SPDX-License-Identifier: Apache-2.0
// Llama 1 to 3 and Mistral, which is Llama with a sliding window.
#include "model/archs/decoder.h"

namespace quern {
namespace {

Result<ModelDesc> describe_llama(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {});
  model.arch = "llama";
  const bool attention_bias = reader.flag_or("attention_bias", false);
  const bool mlp_bias = reader.flag_or("mlp_bias", false);
  for (LayerDesc& layer : model.layers) {
    layer.attention.qkv_bias = layer.attention.o_bias = attention_bias;
    layer.mlp.bias = mlp_bias;
  }
  const int64_t window = reader.integer_or("sliding_window", 0, kMaxContext, 0);
  set_windows(reader, model, window, [](int64_t) { return false; });
  QUERN_TRY(reader.status());
  return model;
}

Result<ModelDesc> describe_mistral(const Json& config) {
  ConfigReader reader(config);
  ModelDesc model = read_decoder(reader, {});
  model.arch = "mistral";
  // The first release left the key out; null, not absence, says that there is no window.
  const bool is_silent = config.is_object() && !config.contains("sliding_window");
  const int64_t window = reader.integer_or("sliding_window", 1, kMaxContext, is_silent ? 4096 : 0);
  set_windows(reader, model, window, [](int64_t) { return true; });
  QUERN_TRY(reader.status());
  return model;
}

constexpr std::string_view kLlamaNames[] = {"LlamaForCausalLM"};
constexpr std::string_view kMistralNames[] = {"MistralForCausalLM"};

}  // namespace

extern const Arch arch_llama;
constinit const Arch arch_llama = {"llama", kLlamaNames, "model.", describe_llama,
                                   locate_llama_like};
extern const Arch arch_mistral;
constinit const Arch arch_mistral = {"mistral", kMistralNames, "model.", describe_mistral,
                                     locate_llama_like};

}  // namespace quern
