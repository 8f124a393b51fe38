// SPDX-License-Identifier: Apache-2.0
// config.json from GGUF metadata. What a file does not record is derived, never guessed in silence:
//
//   llama3 rotary scaling: a file keeps only the factors that divide the frequencies. They are
//     written as `llama3` when that rule with its published constants gives them back, else as
//     `longrope` with equal short and long factors, which means exactly those factors.
//   query_pre_attn_scalar of gemma2: head_dim, but hidden / heads for the 46-layer model.
//   eos_token_id: the end-of-text id, with the end-of-turn id beside it when that differs.
#include "formats/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <set>

#include "formats/gguf_arch.h"

namespace quern {
namespace {

constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxSize = 1 << 24;
constexpr int64_t kMaxContext = int64_t{1} << 40;

// A float that came from a decimal (1e-6f): the double nearest to its shortest decimal (1e-6).
double as_written(double value) {
  const float stored = static_cast<float>(value);
  if (static_cast<double>(stored) != value) return value;
  return std::strtod(fmt::format("{}", stored).c_str(), nullptr);
}

// Keys "{arch}.name" of a file.
class Keys {
 public:
  explicit Keys(const GgufContents& file) : metadata_(file.metadata) {
    const auto arch = metadata_.string("general.architecture");
    if (arch) arch_ = *arch;
  }

  std::string key(std::string_view name) const { return fmt::format("{}.{}", arch_, name); }
  bool has(std::string_view name) const { return metadata_.has(key(name)); }

  // One number, or an array per layer whose entries agree.
  Result<int64_t> integer(std::string_view name, int64_t low, int64_t high) const {
    const GgufValue* value = metadata_.find(key(name));
    if (value == nullptr || !std::holds_alternative<GgufArray>(value->value)) {
      return metadata_.integer(key(name), low, high);
    }
    QUERN_ASSIGN(const std::vector<int64_t> list, metadata_.integers(key(name)));
    for (const int64_t entry : list) {
      if (entry != list[0]) {
        return error("key '{}' differs between layers, which is not supported", key(name));
      }
    }
    if (list.empty() || list[0] < low || list[0] > high) {
      return error("key '{}' is {}, expected an integer in [{}, {}]", key(name),
                   list.empty() ? "empty" : std::to_string(list[0]), low, high);
    }
    return list[0];
  }

  Result<int64_t> integer_or(std::string_view name, int64_t low, int64_t high,
                             int64_t fallback) const {
    if (!has(name)) return fallback;
    return integer(name, low, high);
  }

  Result<double> number(std::string_view name) const {
    QUERN_ASSIGN(const double value, metadata_.number(key(name)));
    return as_written(value);
  }
  Result<double> number_or(std::string_view name, double fallback) const {
    if (!has(name)) return fallback;
    return number(name);
  }
  Result<std::string_view> string_or(std::string_view name, std::string_view fallback) const {
    return metadata_.string_or(key(name), fallback);
  }

 private:
  const GgufMetadata& metadata_;
  std::string_view arch_;
};

// A vector of floats kept as a tensor, as the rotary factors are.
Result<std::vector<double>> factors_of(const TensorInfo& tensor, int64_t n) {
  if (tensor.dtype != DType::kF32 || tensor.shape != Shape{n}) {
    return error("tensor '{}': {} {}, expected F32 [{}]", tensor.name, dtype_name(tensor.dtype),
                 to_string(tensor.shape), n);
  }
  std::vector<float> values(static_cast<size_t>(n));
  convert_to_float(tensor.dtype, tensor.bytes, n, values.data());
  std::vector<double> factors;
  for (const float value : values) {
    if (!std::isfinite(value) || value <= 0) {
      return error("tensor '{}': factor {}, expected a positive number", tensor.name, value);
    }
    factors.push_back(as_written(value));
  }
  return factors;
}

struct Llama3Rule {
  double factor = 8, low = 1, high = 4, original_context = 8192;

  // What frequency base^(-2 i / n_dims) is divided by.
  double divisor(double base, int64_t i, int64_t n_dims) const {
    const double turns =
        original_context * std::pow(base, -2.0 * i / n_dims) / (2 * std::numbers::pi);
    if (turns > high) return 1;
    if (turns < low) return factor;
    const double smooth = (turns - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  }
};

Json factors_as_scaling(const std::vector<double>& factors, double base, int64_t context) {
  const int64_t n = static_cast<int64_t>(factors.size());
  Llama3Rule rule;
  rule.factor = factors.back();
  bool matches = true;
  for (int64_t i = 0; i < n; ++i) {
    const double expected = rule.divisor(base, i, 2 * n);
    // The factors went through a few float operations on the way into the file.
    matches = matches && std::abs(factors[i] - expected) <= 1e-4 * expected;
  }
  if (matches) {
    return {{"rope_type", "llama3"},
            {"factor", rule.factor},
            {"low_freq_factor", rule.low},
            {"high_freq_factor", rule.high},
            {"original_max_position_embeddings", static_cast<int64_t>(rule.original_context)}};
  }
  return {{"rope_type", "longrope"},
          {"short_factor", factors},
          {"long_factor", factors},
          {"attention_factor", 1.0},
          {"original_max_position_embeddings", context}};
}

// `rope_scaling` of the keys {arch}.rope.scaling.*; null if there is none.
Result<Json> scaling_of_keys(const Keys& keys) {
  QUERN_ASSIGN(const double old_factor, keys.number_or("rope.scale_linear", 1));
  QUERN_ASSIGN(const std::string_view type,
               keys.string_or("rope.scaling.type", old_factor != 1 ? "linear" : "none"));
  if (type == "none" || type == "longrope") return Json();  // longrope has tensors
  if (type != "linear" && type != "yarn") {
    return error("key '{}' is '{}', expected none, linear, yarn or longrope",
                 keys.key("rope.scaling.type"), type);
  }
  QUERN_ASSIGN(const double factor, keys.number_or("rope.scaling.factor", old_factor));
  if (!(factor > 0)) return error("key '{}' is {}", keys.key("rope.scaling.factor"), factor);
  Json scaling = {{"rope_type", type}, {"factor", factor}};
  if (type == "linear") return scaling;
  QUERN_ASSIGN(const int64_t original,
               keys.integer("rope.scaling.original_context_length", 1, kMaxContext));
  scaling["original_max_position_embeddings"] = original;
  for (const char* name : {"beta_fast", "beta_slow"}) {
    const std::string key = fmt::format("rope.scaling.yarn_{}", name);
    if (!keys.has(key)) continue;
    QUERN_ASSIGN(scaling[name], keys.number(key));
  }
  for (const char* key : {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"}) {
    QUERN_ASSIGN(const double magnitude, keys.number_or(key, 1));
    if (magnitude != 1)
      return error("key '{}' is {} beside yarn, expected 1", keys.key(key), magnitude);
  }
  return scaling;
}

// Frequencies divided by one of two tables, by the length of the context in use.
Status add_longrope(const GgufContents& file, const Keys& keys, int64_t n, Json& config) {
  const TensorInfo* wide = find_gguf_tensor(file, "rope_factors_long.weight");
  const TensorInfo* narrow = find_gguf_tensor(file, "rope_factors_short.weight");
  if (wide == nullptr && narrow == nullptr) return {};
  if (wide == nullptr || narrow == nullptr) {
    return error("only one of 'rope_factors_long.weight' and 'rope_factors_short.weight'");
  }
  QUERN_ASSIGN(const std::vector<double> long_factors, factors_of(*wide, n));
  QUERN_ASSIGN(const std::vector<double> short_factors, factors_of(*narrow, n));
  const int64_t context = config["max_position_embeddings"].get<int64_t>();
  QUERN_ASSIGN(const int64_t original,
               keys.integer_or("rope.scaling.original_context_length", 2, kMaxContext, context));
  Json scaling = {
      {"rope_type", "longrope"}, {"long_factor", long_factors}, {"short_factor", short_factors}};
  scaling["original_max_position_embeddings"] = original;
  config["original_max_position_embeddings"] = original;
  if (keys.has("rope.scaling.attn_factor")) {
    QUERN_ASSIGN(const double magnitude, keys.number("rope.scaling.attn_factor"));
    const double growth = static_cast<double>(context) / static_cast<double>(original);
    const double usual =
        growth <= 1 ? 1 : std::sqrt(1 + std::log(growth) / std::log(static_cast<double>(original)));
    if (std::abs(magnitude - usual) > 1e-6 * usual) scaling["attention_factor"] = magnitude;
  }
  config["rope_scaling"] = scaling;
  return {};
}

Status add_rope(const GgufContents& file, const Keys& keys, Json& config) {
  const int64_t head_dim = config["head_dim"].get<int64_t>();
  QUERN_ASSIGN(const double base, keys.number_or("rope.freq_base", 10000));
  if (!(base > 0)) return error("key '{}' is {}", keys.key("rope.freq_base"), base);
  QUERN_ASSIGN(const int64_t n_dims,
               keys.integer_or("rope.dimension_count", 2, kMaxSize, head_dim));
  if (n_dims % 2 != 0 || n_dims > head_dim) {
    return error("key '{}' is {}, expected an even number up to {}",
                 keys.key("rope.dimension_count"), n_dims, head_dim);
  }
  config["rope_theta"] = base;
  if (n_dims != head_dim) {
    config["partial_rotary_factor"] = static_cast<double>(n_dims) / static_cast<double>(head_dim);
  }
  QUERN_ASSIGN(config["rope_scaling"], scaling_of_keys(keys));
  const int64_t context = config["max_position_embeddings"].get<int64_t>();
  if (const TensorInfo* tensor = find_gguf_tensor(file, "rope_freqs.weight")) {
    QUERN_ASSIGN(const std::vector<double> factors, factors_of(*tensor, n_dims / 2));
    const bool plain = std::all_of(factors.begin(), factors.end(), [](double f) { return f == 1; });
    if (!plain && !config["rope_scaling"].is_null()) {
      return error("tensor '{}' beside scaling by keys, which is not supported", tensor->name);
    }
    if (!plain) config["rope_scaling"] = factors_as_scaling(factors, base, context);
  }
  return add_longrope(file, keys, n_dims / 2, config);
}

Status add_tokens(const GgufMetadata& metadata, Json& config) {
  const auto id = [&](std::string_view name) {
    return metadata.integer_or(fmt::format("tokenizer.ggml.{}_token_id", name), 0, kMaxSize, -1);
  };
  QUERN_ASSIGN(const int64_t bos, id("bos"));
  QUERN_ASSIGN(const int64_t eos, id("eos"));
  QUERN_ASSIGN(const int64_t eot, id("eot"));
  QUERN_ASSIGN(const int64_t pad, id("padding"));
  if (bos >= 0) config["bos_token_id"] = bos;
  if (pad >= 0) config["pad_token_id"] = pad;
  if (eos >= 0 && eot >= 0 && eos != eot) {
    config["eos_token_id"] = {eos, eot};
  } else if (eos >= 0 || eot >= 0) {
    config["eos_token_id"] = std::max(eos, eot);
  }
  return {};
}

// Sizes that every architecture has, under the names that most configs use.
Status add_sizes(const GgufContents& file, const Keys& keys, Json& config) {
  QUERN_ASSIGN(const int64_t hidden, keys.integer("embedding_length", 1, kMaxSize));
  QUERN_ASSIGN(const int64_t layers, keys.integer("block_count", 1, kMaxLayers));
  QUERN_ASSIGN(const int64_t heads, keys.integer("attention.head_count", 1, kMaxHeads));
  QUERN_ASSIGN(const int64_t kv_heads,
               keys.integer_or("attention.head_count_kv", 1, kMaxHeads, heads));
  QUERN_ASSIGN(const int64_t d_ffn, keys.integer("feed_forward_length", 1, kMaxSize));
  QUERN_ASSIGN(const int64_t context, keys.integer("context_length", 1, kMaxContext));
  if (heads % kv_heads != 0) {
    return error("{} heads are no multiple of {} key-value heads", heads, kv_heads);
  }
  if (!keys.has("attention.key_length") && hidden % heads != 0) {
    return error("embedding length {} is no multiple of {} heads", hidden, heads);
  }
  QUERN_ASSIGN(const int64_t head_dim,
               keys.integer_or("attention.key_length", 1, kMaxSize, hidden / heads));
  QUERN_ASSIGN(const int64_t value_dim,
               keys.integer_or("attention.value_length", 1, kMaxSize, head_dim));
  if (head_dim < 1 || value_dim != head_dim) {
    return error("keys of {} and values of {} dimensions, expected equal", head_dim, value_dim);
  }
  const TensorInfo* embed = find_gguf_tensor(file, "token_embd.weight");
  if (embed == nullptr) return error("no tensor 'token_embd.weight'");
  if (embed->shape.size() != 2 || embed->shape[1] != hidden || embed->shape[0] > kMaxSize) {
    return error("tensor '{}': shape {}, expected [up to {}, {}]", embed->name,
                 to_string(embed->shape), kMaxSize, hidden);
  }
  config["hidden_size"] = hidden;
  config["num_hidden_layers"] = layers;
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = kv_heads;
  config["head_dim"] = head_dim;
  config["intermediate_size"] = d_ffn;
  config["max_position_embeddings"] = context;
  config["vocab_size"] = embed->shape[0];
  config["tie_word_embeddings"] = find_gguf_tensor(file, "output.weight") == nullptr;
  config["torch_dtype"] = embed->dtype == DType::kF32    ? "float32"
                          : embed->dtype == DType::kBF16 ? "bfloat16"
                                                         : "float16";
  return add_tokens(file.metadata, config);
}

// A decoder with RMS norms, rotary embedding and a gated SiLU MLP.
Status finish_common(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_ASSIGN(const double eps, keys.number("attention.layer_norm_rms_epsilon"));
  config["rms_norm_eps"] = eps;
  config["hidden_act"] = "silu";
  config["attention_bias"] = find_gguf_tensor(file, "blk.0.attn_q.bias") != nullptr;
  return add_rope(file, keys, config);
}

Status refuse_window(const Keys& keys) {
  QUERN_ASSIGN(const int64_t window,
               keys.integer_or("attention.sliding_window", 0, kMaxContext, 0));
  if (window == 0) return {};
  return error("key '{}' is {}, which this architecture does not support",
               keys.key("attention.sliding_window"), window);
}

Status add_experts(const Keys& keys, Json& config) {
  QUERN_ASSIGN(const int64_t n_experts, keys.integer("expert_count", 1, kMaxExperts));
  QUERN_ASSIGN(const int64_t top_k, keys.integer("expert_used_count", 1, n_experts));
  config["num_experts_per_tok"] = top_k;
  config["num_local_experts"] = n_experts;
  return {};
}

}  // namespace

Status finish_llama(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_TRY(finish_common(file, config));
  if (config.contains("partial_rotary_factor")) return error("partial rotary embedding in llama");
  config["mlp_bias"] = find_gguf_tensor(file, "blk.0.ffn_up.bias") != nullptr;
  // The converter calls Mistral llama; a window tells them apart.
  QUERN_ASSIGN(const int64_t window,
               keys.integer_or("attention.sliding_window", 0, kMaxContext, 0));
  if (window == 0) return {};
  config["architectures"] = {"MistralForCausalLM"};
  config["model_type"] = "mistral";
  config["sliding_window"] = window;
  return {};
}

Status finish_mixtral(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_TRY(finish_common(file, config));
  if (config.contains("partial_rotary_factor")) return error("partial rotary embedding in llama");
  QUERN_TRY(refuse_window(keys));
  config["sliding_window"] = nullptr;
  return add_experts(keys, config);
}

Status finish_qwen2(const GgufContents& file, Json& config) {
  QUERN_TRY(finish_common(file, config));
  config["use_sliding_window"] = false;
  return refuse_window(Keys(file));
}

Status finish_qwen3(const GgufContents& file, Json& config) { return finish_qwen2(file, config); }

Status finish_qwen3_moe(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_TRY(finish_qwen2(file, config));
  QUERN_TRY(add_experts(keys, config));
  config["num_experts"] = config["num_local_experts"];
  QUERN_ASSIGN(const int64_t d_ffn, keys.integer("expert_feed_forward_length", 1, kMaxSize));
  config["moe_intermediate_size"] = d_ffn;
  config["norm_topk_prob"] = true;
  config["decoder_sparse_step"] = 1;
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : file.tensors) names.insert(tensor.name);
  Json dense = Json::array();  // layers without a router
  for (int64_t layer = 0; layer < config["num_hidden_layers"].get<int64_t>(); ++layer) {
    if (!names.contains(fmt::format("blk.{}.ffn_gate_inp.weight", layer))) dense.push_back(layer);
  }
  config["mlp_only_layers"] = dense;
  return {};
}

Status finish_gemma2(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_TRY(finish_common(file, config));
  config["hidden_act"] = config["hidden_activation"] = "gelu_pytorch_tanh";
  QUERN_ASSIGN(const double attention_cap, keys.number_or("attn_logit_softcapping", 50));
  QUERN_ASSIGN(const double final_cap, keys.number_or("final_logit_softcapping", 30));
  QUERN_ASSIGN(const int64_t window,
               keys.integer_or("attention.sliding_window", 1, kMaxContext, 4096));
  config["attn_logit_softcapping"] = attention_cap;
  config["final_logit_softcapping"] = final_cap;
  config["sliding_window"] = window;
  const int64_t layers = config["num_hidden_layers"].get<int64_t>();
  const int64_t wide =
      config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>();
  config["query_pre_attn_scalar"] = layers == 46 ? wide : config["head_dim"].get<int64_t>();
  Json types = Json::array();
  for (int64_t layer = 0; layer < layers; ++layer) {
    types.push_back(layer % 2 == 0 ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = types;
  return {};
}

Status finish_phi3(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_TRY(finish_common(file, config));
  QUERN_ASSIGN(const int64_t window,
               keys.integer_or("attention.sliding_window", 0, kMaxContext, 0));
  config["sliding_window"] = window == 0 ? Json() : Json(window);
  return {};
}

Status finish_gpt2(const GgufContents& file, Json& config) {
  const Keys keys(file);
  QUERN_ASSIGN(const double eps, keys.number("attention.layer_norm_epsilon"));
  for (const auto& [from, to] :
       {std::pair{"hidden_size", "n_embd"}, std::pair{"num_hidden_layers", "n_layer"},
        std::pair{"num_attention_heads", "n_head"}, std::pair{"intermediate_size", "n_inner"},
        std::pair{"max_position_embeddings", "n_positions"}}) {
    config[to] = config[from];
    config.erase(from);
  }
  config.erase("num_key_value_heads");
  config.erase("head_dim");
  config["layer_norm_epsilon"] = eps;
  config["activation_function"] = "gelu_new";
  return {};
}

Result<Json> make_gguf_config(const GgufArch& arch, const GgufContents& file) {
  Json config = Json::object();
  config["architectures"] = {arch.architecture};
  config["model_type"] = arch.model_type;
  QUERN_TRY(add_sizes(file, Keys(file), config));
  QUERN_TRY(arch.finish(file, config));
  return config;
}

}  // namespace quern
