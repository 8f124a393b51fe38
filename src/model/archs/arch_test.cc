// SPDX-License-Identifier: Apache-2.0
#include "model/archs/arch.h"

#include <gtest/gtest.h>

#include <set>

#include "model/archs/rope.h"
#include "model/model_test_util.h"

namespace quern {
namespace {

using test::fixture_config;
using test::fixture_names;

Result<ModelDesc> describe(const Json& config) {
  QUERN_ASSIGN(const Arch* arch, find_arch(config));
  return arch->describe(config);
}

// The message of the error that the config must give.
std::string refusal(const Json& config) {
  const Result<ModelDesc> model = describe(config);
  return model ? "accepted" : model.error().message;
}

ModelDesc accepted(const Json& config) {
  const Result<ModelDesc> model = describe(config);
  EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
  return model ? *model : ModelDesc();
}

Json without(Json config, const std::string& key) {
  config.erase(key);
  return config;
}

Json with(Json config, const std::string& key, const Json& value) {
  config[key] = value;
  return config;
}

// The key of config.json that moves between the layouts under this name.
std::string theta_key(const Json& config) {
  return config["model_type"] == "gpt_neox" ? "rotary_emb_base" : "rope_theta";
}
std::string share_key(const Json& config) {
  return config["model_type"] == "gpt_neox" ? "rotary_pct" : "partial_rotary_factor";
}

void move_key(Json& from, const std::string& key, Json& to, const std::string& new_key) {
  if (!from.contains(key)) return;
  to[new_key] = from[key];
  from.erase(key);
}

Json old_layout(Json config) {
  if (!config.contains("rope_parameters")) return config;
  Json scaling = config["rope_parameters"];
  config.erase("rope_parameters");
  move_key(scaling, "rope_theta", config, theta_key(config));
  move_key(scaling, "partial_rotary_factor", config, share_key(config));
  move_key(scaling, "rope_type", scaling, "type");
  config["rope_scaling"] = scaling["type"] == "default" ? Json() : scaling;
  move_key(config, "dtype", config, "torch_dtype");
  return config;
}

Json new_layout(Json config) {
  if (config.contains("rope_parameters")) return config;
  Json parameters = config.value("rope_scaling", Json());
  if (parameters.is_null()) parameters = {{"type", "default"}};
  config.erase("rope_scaling");
  move_key(config, theta_key(config), parameters, "rope_theta");
  move_key(config, share_key(config), parameters, "partial_rotary_factor");
  move_key(parameters, "type", parameters, "rope_type");
  config["rope_parameters"] = parameters;
  move_key(config, "torch_dtype", config, "dtype");
  return config;
}

TEST(Archs, EveryRowHasAFixtureAndEveryFixtureIsDescribed) {
  std::set<std::string_view> seen;
  for (const std::string& name : fixture_names()) {
    const Json config = fixture_config(name);
    const ModelDesc model = accepted(config);
    EXPECT_EQ(model.arch, config["model_type"].get<std::string>()) << name;
    EXPECT_EQ(model.bos, 1);
    for (const Arch& arch : archs()) {
      if (arch.name == model.arch) seen.insert(arch.name);
    }
  }
  EXPECT_EQ(seen.size(), archs().size());
}

TEST(Archs, AreFoundByArchitectureThenByModelType) {
  const Json config = fixture_config("qwen2");
  EXPECT_EQ((*find_arch(config))->name, "qwen2");
  EXPECT_EQ((*find_arch(without(config, "architectures")))->name, "qwen2");
  EXPECT_EQ((*find_arch(with(config, "model_type", "custom")))->name, "qwen2");
  const auto unknown = find_arch(with(config, "architectures", {"RwkvForCausalLM"}));
  ASSERT_FALSE(unknown.has_value());
  EXPECT_NE(unknown.error().message.find("RwkvForCausalLM"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("gpt_neox, llama, mistral"), std::string::npos);
  EXPECT_FALSE(find_arch(Json::array()).has_value());
  EXPECT_FALSE(find_arch(Json::object()).has_value());
  EXPECT_FALSE(find_arch(with(config, "architectures", "llama")).has_value());
}

TEST(Archs, OldAndNewLayoutsGiveEqualDescriptions) {
  for (const std::string& name : fixture_names()) {
    const Json config = fixture_config(name);
    if (accepted(config).positions != PositionKind::kRope) continue;
    EXPECT_EQ(accepted(old_layout(config)), accepted(new_layout(config))) << name;
    EXPECT_EQ(accepted(config), accepted(new_layout(config))) << name;
  }
}

TEST(Archs, RefuseEveryImpossibleSizeByItsKey) {
  const std::vector<std::string> keys = {"hidden_size",
                                         "n_embd",
                                         "num_hidden_layers",
                                         "n_layer",
                                         "n_head",
                                         "n_inner",
                                         "num_attention_heads",
                                         "num_key_value_heads",
                                         "head_dim",
                                         "n_positions",
                                         "intermediate_size",
                                         "vocab_size",
                                         "ffn_dim",
                                         "num_experts",
                                         "num_local_experts",
                                         "num_experts_per_tok",
                                         "moe_intermediate_size",
                                         "max_position_embeddings",
                                         "shared_expert_intermediate_size"};
  const std::vector<Json> bad = {0, -1, int64_t{1} << 40, UINT64_MAX, 1.5, "8", Json::array({8})};
  int n_tried = 0;
  for (const std::string& name : fixture_names()) {
    const Json config = fixture_config(name);
    for (const std::string& key : keys) {
      if (!config.contains(key)) continue;
      for (const Json& value : bad) {
        EXPECT_NE(refusal(with(config, key, value)).find(key), std::string::npos)
            << name << " " << key << " = " << value << ": " << refusal(with(config, key, value));
        ++n_tried;
      }
    }
  }
  EXPECT_GT(n_tried, 1000);
}

TEST(Archs, RefuseAConfigThatLacksASize) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                          "intermediate_size", "max_position_embeddings"}) {
    EXPECT_NE(refusal(without(fixture_config("llama"), key)).find(key), std::string::npos);
  }
}

struct BadCase {
  std::string fixture, key;
  Json value;
};

TEST(Archs, DeclineWhatTheyDoNotSupport) {
  const std::vector<BadCase> cases = {
      {"llama", "num_key_value_heads", 3},
      {"llama", "hidden_act", "mish"},
      {"llama", "rms_norm_eps", -1e-5},
      {"llama", "rms_norm_eps", 2},
      {"llama", "bos_token_id", 128},
      {"llama", "bos_token_id", -2},
      {"llama", "eos_token_id", Json::array({2, 4096})},
      {"llama", "eos_token_id", UINT64_MAX},
      {"llama", "eos_token_id", "2"},
      {"llama", "tie_word_embeddings", 1},
      {"llama", "attention_bias", "yes"},
      {"llama", "layer_types", Json::array({"full_attention"})},
      {"llama", "layer_types", Json::array({"full_attention", "linear_attention"})},
      {"llama", "layer_types", Json::array({"full_attention", 3})},
      {"qwen2", "layer_types", 2},
      {"mistral", "sliding_window", 0},
      {"mistral", "sliding_window", -1},
      {"opt", "word_embed_proj_dim", 16},
      {"opt", "do_layer_norm_before", false},
      {"opt", "_remove_final_layer_norm", true},
      {"opt", "layer_norm_elementwise_affine", false},
      {"opt", "activation_function", "prelu"},
      {"gpt2", "add_cross_attention", true},
      {"gpt2", "layer_norm_epsilon", "small"},
      {"gpt_neox", "layer_norm_eps", Json::array()},
      {"gemma2", "use_bidirectional_attention", true},
      {"gemma2", "query_pre_attn_scalar", 0},
      {"gemma2", "attn_logit_softcapping", -2},
      {"qwen3_moe", "mlp_only_layers", Json::array({2})},
      {"qwen3_moe", "mlp_only_layers", Json::array({-1})},
      {"qwen3_moe", "mlp_only_layers", Json::array({"0"})},
      {"qwen3_moe", "decoder_sparse_step", 0},
      {"qwen3_moe", "num_experts_per_tok", 7},
      {"mixtral", "num_experts_per_tok", 5},
  };
  for (const BadCase& c : cases) {
    const std::string message = refusal(with(fixture_config(c.fixture), c.key, c.value));
    EXPECT_NE(message.find(c.key), std::string::npos)
        << c.fixture << " " << c.key << ": " << message;
  }
  // Layers that want a window, and no window given.
  const Json types = Json::array({"full_attention", "sliding_attention"});
  EXPECT_NE(refusal(with(fixture_config("llama"), "layer_types", types)).find("sliding_window"),
            std::string::npos);
  EXPECT_NE(refusal(with(without(fixture_config("llama"), "head_dim"), "num_attention_heads", 6))
                .find("num_attention_heads"),
            std::string::npos);
}

TEST(Archs, DeclineBadRotaryParameters) {
  const std::vector<BadCase> cases = {
      {"llama", "rope_theta", 1},
      {"llama", "rope_theta", 1e30},
      {"llama", "rope_theta", "big"},
      {"llama", "rope_type", "mrope"},
      {"llama", "rope_type", 3},
      {"llama", "partial_rotary_factor", 0.5},
      {"llama-linear", "factor", 0.5},
      {"llama-linear", "factor", Json()},
      {"llama-yarn", "factor", 1e9},
      {"llama-yarn", "original_max_position_embeddings", 0},
      {"llama-yarn", "beta_fast", "fast"},
      {"llama-llama3", "high_freq_factor", 1.0},
      {"llama-llama3", "low_freq_factor", -1},
      {"phi3", "long_factor", Json::array({1, 2, 3})},
      {"phi3", "short_factor", Json::array({1, 2, 3, 0})},
      {"phi3", "short_factor", Json::array({1, 2, 3, "4"})},
      {"phi3", "short_factor", Json()},
      {"phi3", "short_mscale", 1.1},
      {"phi3", "partial_rotary_factor", 0.01},
      {"gpt_neox", "partial_rotary_factor", 0.2},  // 3 dimensions of 16
      {"gpt_neox", "partial_rotary_factor", 1.5},
      {"gpt_neox", "partial_rotary_factor", -0.5},
  };
  for (const BadCase& c : cases) {
    Json config = new_layout(fixture_config(c.fixture));
    config["rope_parameters"][c.key] = c.value;
    EXPECT_NE(refusal(config), "accepted") << c.fixture << " " << c.key << " = " << c.value;
  }
  Json by_type = fixture_config("gemma2");
  by_type["rope_parameters"] = {{"full_attention", by_type["rope_parameters"]},
                                {"sliding_attention", by_type["rope_parameters"]}};
  EXPECT_NE(refusal(by_type).find("by layer type"), std::string::npos);
  EXPECT_NE(refusal(with(fixture_config("llama"), "rope_parameters", "default")), "accepted");
}

TEST(Archs, TakeTheFamilysValueWhereTheConfigIsSilent) {
  EXPECT_EQ(
      accepted(without(fixture_config("mistral"), "sliding_window")).layers[0].attention.window,
      4096);
  EXPECT_EQ(accepted(with(fixture_config("mistral"), "sliding_window", Json()))
                .layers[0]
                .attention.window,
            0);
  EXPECT_EQ(accepted(without(fixture_config("llama-untied"), "num_key_value_heads"))
                .layers[0]
                .attention.n_kv_heads,
            6);
  EXPECT_EQ(accepted(without(fixture_config("llama"), "head_dim")).layers[0].attention.d_head, 8);
  EXPECT_EQ(accepted(without(fixture_config("gemma2"), "layer_types")).layers[1].attention.window,
            0);
  EXPECT_EQ(accepted(without(fixture_config("gemma2"), "layer_types")).layers[2].attention.window,
            9);
  EXPECT_EQ(accepted(without(fixture_config("gpt2"), "n_inner")).layers[0].mlp.d_ffn, 192);
  EXPECT_TRUE(accepted(without(fixture_config("gpt2"), "tie_word_embeddings")).tied_head);
  EXPECT_FALSE(accepted(without(fixture_config("llama"), "tie_word_embeddings")).tied_head);
  EXPECT_EQ(accepted(fixture_config("llama-untied")).eos, (std::vector<int32_t>{2, 5, 7}));
  EXPECT_TRUE(accepted(with(fixture_config("llama"), "eos_token_id", Json())).eos.empty());
}

RopeDesc rope_of(const Json& config) { return accepted(config).layers[0].attention.rope; }

TEST(Rope, Llama3KeepsHighFrequenciesAndDividesLowOnes) {
  Json config = fixture_config("llama-llama3");
  const RopeDesc scaled = rope_of(config);
  config["rope_scaling"] = Json();
  const RopeDesc plain = rope_of(config);
  EXPECT_EQ(scaled.inv_freq.front(), plain.inv_freq.front());
  EXPECT_EQ(scaled.inv_freq.back(), plain.inv_freq.back() / 8);
  EXPECT_EQ(scaled.magnitude, 1);
}

TEST(Rope, DynamicIsDefaultWithinTheContext) {
  Json config = fixture_config("llama-linear");
  config["rope_parameters"]["rope_type"] = "dynamic";
  const RopeDesc dynamic = rope_of(config);
  config["rope_parameters"]["rope_type"] = "default";
  EXPECT_EQ(dynamic, rope_of(config));
}

TEST(Rope, LongropeTakesItsMagnitudeFromTheRatioOfContexts) {
  const RopeDesc rope = rope_of(fixture_config("phi3-long"));
  EXPECT_EQ(rope.original_context, 16);
  EXPECT_EQ(rope.n_dims, 12);
  EXPECT_DOUBLE_EQ(rope.magnitude, std::sqrt(1 + std::log(4.0) / std::log(16.0)));
  EXPECT_EQ(rope.inv_freq_long.size(), 6u);
  EXPECT_DOUBLE_EQ(rope.inv_freq_long.back() * 4, rope.inv_freq.back() * 1.5);
}

}  // namespace
}  // namespace quern
