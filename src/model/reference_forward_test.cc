// SPDX-License-Identifier: Apache-2.0
#include "model/reference_forward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "model/model_test_util.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;
using test::read_json;

// The goldens are float32 runs of another implementation, rounded to six decimals (5e-7). In such
// a run a logit is the end of a chain of about 10 roundings per layer, each of which moves it by at
// most half of eps = 2^-23 of the largest activation; sums of up to 192 terms add about
// sqrt(192) eps. With |logits| <= 19, 3 layers and both runs in float:
//   2 * 19 * eps * (10 * 3 + 14) / 2 = 1e-4
constexpr double kTolerance = 1e-4;

struct Fixture {
  WeightStore store;
  std::vector<int32_t> ids;
  std::vector<std::vector<double>> logits;
};

Fixture open_fixture(const std::string& name) {
  auto store = WeightStore::open(fixture_path(name));
  EXPECT_TRUE(store.has_value()) << (store ? "" : store.error().message);
  const Json golden = read_json(fixture_path(name) + "/golden.json");
  return {*std::move(store), golden["ids"], golden["logits"]};
}

template <class T>
DenseWeights<T> load(const WeightStore& store) {
  auto weights = DenseWeights<T>::load(store);
  EXPECT_TRUE(weights.has_value());
  return *std::move(weights);
}

template <class T>
double distance(const Matrix<T>& a, const Matrix<T>& b) {
  double max = 0;
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) {
    max = std::max(max, std::abs(double(a.data()[i]) - double(b.data()[i])));
  }
  return max;
}

template <class T>
double distance_to_golden(const Fixture& fixture) {
  const auto logits = reference_logits(fixture.store.model(), load<T>(fixture.store),
                                       std::span<const int32_t>(fixture.ids));
  EXPECT_EQ(logits.rows(), static_cast<int64_t>(fixture.logits.size()));
  EXPECT_EQ(logits.cols(), static_cast<int64_t>(fixture.logits[0].size()));
  double max = 0;
  for (int64_t i = 0; i < logits.rows(); ++i) {
    for (int64_t j = 0; j < logits.cols(); ++j) {
      const double golden = fixture.logits[static_cast<size_t>(i)][static_cast<size_t>(j)];
      max = std::max(max, std::abs(double(logits(i, j)) - golden));
    }
  }
  return max;
}

TEST(ReferenceForward, AgreesWithTheGoldenLogitsOfEveryFixture) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    EXPECT_LT(distance_to_golden<float>(fixture), kTolerance) << name;
    EXPECT_LT(distance_to_golden<double>(fixture), kTolerance) << name;
  }
}

TEST(ReferenceForward, AgreesWithTheTrainedTinyModel) {
  const std::string path = QUERN_SOURCE_DIR "/models/tiny";
  auto store = WeightStore::open(path);
  ASSERT_TRUE(store.has_value()) << store.error().message;
  const Json golden = read_json(path + "/golden.json");
  const std::vector<int32_t> ids = golden["ids"];
  const auto logits =
      reference_logits(store->model(), load<float>(*store), std::span<const int32_t>(ids));
  const std::vector<double> last = golden["last_logits_first64"];
  const std::vector<double> log_sums = golden["logsumexp"];
  const std::vector<int64_t> argmax = golden["argmax"];
  // The model's own weights are bfloat16 and its logits reach 20 over 6 layers.
  for (size_t j = 0; j < last.size(); ++j) {
    EXPECT_NEAR(logits(logits.rows() - 1, static_cast<int64_t>(j)), last[j], 1e-3);
  }
  for (int64_t i = 0; i < logits.rows(); ++i) {
    const float* row = logits.row(i);
    double sum = 0;
    for (int64_t j = 0; j < logits.cols(); ++j) sum += std::exp(double(row[j]));
    EXPECT_NEAR(std::log(sum), log_sums[static_cast<size_t>(i)], 1e-3);
    EXPECT_EQ(std::max_element(row, row + logits.cols()) - row, argmax[static_cast<size_t>(i)]);
  }
}

struct Change {
  std::string fixture;
  std::function<void(ModelDesc&)> change;
};

// One feature left out of a fixture's description.
std::vector<Change> feature_changes() {
  const auto layers = [](auto edit) {
    return [edit](ModelDesc& model) {
      for (LayerDesc& layer : model.layers) edit(layer);
    };
  };
  const auto plain_rope = [](LayerDesc& layer) {
    RopeDesc& rope = layer.attention.rope;
    for (int j = 0; j < rope.n_dims; j += 2) {
      rope.inv_freq[size_t(j / 2)] = std::pow(1000.0, -double(j) / rope.n_dims);
    }
    rope.inv_freq_long.clear();
  };
  const auto unit_magnitude = [](LayerDesc& layer) { layer.attention.rope.magnitude = 1; };
  const auto no_window = [](LayerDesc& layer) { layer.attention.window = 0; };
  const auto flip_renormalise = [](LayerDesc& layer) {
    layer.mlp.renormalise = !layer.mlp.renormalise;
  };
  return {
      {"llama-untied", layers([](LayerDesc& l) { l.attention.qkv_bias = false; })},
      {"llama-untied", layers([](LayerDesc& l) { l.attention.o_bias = false; })},
      {"llama-untied", layers([](LayerDesc& l) { l.mlp.bias = false; })},
      {"llama-untied", [](ModelDesc& model) { model.tied_head = true; }},
      {"llama-llama3", layers(plain_rope)},
      {"llama-linear", layers(plain_rope)},
      {"llama-yarn", layers(plain_rope)},
      {"llama-yarn", layers(unit_magnitude)},
      {"phi3", layers(plain_rope)},
      {"phi3", layers(unit_magnitude)},
      {"phi3", layers(no_window)},
      {"phi3-long", layers([](LayerDesc& l) { l.attention.rope.inv_freq_long.clear(); })},
      {"mistral", layers(no_window)},
      {"qwen2", layers(no_window)},
      {"qwen2", layers([](LayerDesc& l) { l.attention.window = 6; })},
      {"qwen3", layers([](LayerDesc& l) { l.attention.qk_norm = {}; })},
      {"gemma2", layers(no_window)},
      {"gemma2", layers([](LayerDesc& l) { l.attention.soft_cap = 0; })},
      {"gemma2", layers([](LayerDesc& l) { l.attention.scale = 1 / std::sqrt(12.0); })},
      {"gemma2", layers([](LayerDesc& l) { l.attn_post_norm = {}; })},
      {"gemma2", layers([](LayerDesc& l) { l.mlp_post_norm = {}; })},
      {"gemma2", layers([](LayerDesc& l) { l.attn_norm.gain_offset = 0; })},
      {"gemma2", [](ModelDesc& model) { model.logit_soft_cap = 0; }},
      {"gemma2", [](ModelDesc& model) { model.embed_scale = 1; }},
      {"gpt2", [](ModelDesc& model) { model.positions = PositionKind::kNone; }},
      {"gpt2", layers([](LayerDesc& l) { l.mlp.activation = Activation::kRelu; })},
      {"opt", [](ModelDesc& model) { model.pos_offset = 0; }},
      {"opt", layers([](LayerDesc& l) { l.mlp_norm.has_bias = false; })},
      {"gpt_neox", layers([](LayerDesc& l) { l.parallel = false; })},
      {"gpt_neox-serial", layers([](LayerDesc& l) { l.parallel = true; })},
      {"mixtral", layers(flip_renormalise)},
      {"qwen3_moe", [=](ModelDesc& model) { flip_renormalise(model.layers[1]); }},
      {"qwen3_moe-raw", layers(flip_renormalise)},
      {"qwen3_moe-raw", layers([](LayerDesc& l) { l.mlp.top_k = 1; })},
      {"qwen2_moe", layers([](LayerDesc& l) { l.mlp.shared_router = false; })},
      {"qwen2_moe", layers([](LayerDesc& l) { l.mlp.d_ffn_shared = 0; })},
  };
}

// A fixture proves a feature only if its logits move when the feature is left out.
TEST(ReferenceForward, FixturesSeeEveryFeature) {
  const std::vector<Change> changes = feature_changes();
  for (size_t i = 0; i < changes.size(); ++i) {
    const Fixture fixture = open_fixture(changes[i].fixture);
    const DenseWeights<double> weights = load<double>(fixture.store);
    const std::span<const int32_t> ids(fixture.ids);
    ModelDesc changed = fixture.store.model();
    changes[i].change(changed);
    EXPECT_GT(distance(reference_logits(changed, weights, ids),
                       reference_logits(fixture.store.model(), weights, ids)),
              100 * kTolerance)
        << "change " << i << " of " << changes[i].fixture;
  }
}

TEST(ReferenceForward, CallsEachHookWithItsTensor) {
  for (const char* name : {"qwen2_moe", "qwen3_moe", "gpt2"}) {
    const Fixture fixture = open_fixture(name);
    const ModelDesc& model = fixture.store.model();
    const AttentionDesc& attention = model.layers[0].attention;
    const int64_t n = static_cast<int64_t>(fixture.ids.size());
    std::map<std::string, int> calls;
    std::map<int, int64_t> routed;  // tokens by layer
    const auto count = [&](const std::string& hook, const Matrix<float>& x, int64_t cols) {
      ++calls[hook];
      EXPECT_EQ(x.cols(), cols) << hook;
      if (hook != "down_input") {
        EXPECT_EQ(x.rows(), n) << hook;
      }
    };
    const int64_t d = model.d_model;
    const int64_t d_q = attention.n_heads * attention.d_head;
    const int64_t d_kv = attention.n_kv_heads * attention.d_head;
    using M = Matrix<float>;
    const ReferenceHooks<float> hooks = {
        .after_embedding = [&](M& h) { count("after_embedding", h, d); },
        .before_final_norm = [&](M& h) { count("before_final_norm", h, d); },
        .before_head = [&](M& h) { count("before_head", h, d); },
        .qkv_input = [&](int, M& x) { count("qkv_input", x, d); },
        .q = [&](int, M& q) { count("q", q, d_q); },
        .k = [&](int, M& k) { count("k", k, d_kv); },
        .v = [&](int, M& v) { count("v", v, d_kv); },
        .o_input = [&](int, M& x) { count("o_input", x, d_q); },
        .mlp_input = [&](int, M& x) { count("mlp_input", x, d); },
        .down_input =
            [&](const WeightId& down, M& x) {
              count("down_input", x, weight_shape(model, down)[1]);
              if (down.role == Role::kDown) routed[down.layer] += x.rows();
            },
        .layer_output = [&](int, M& h) { count("layer_output", h, d); },
    };
    reference_logits(model, load<float>(fixture.store), std::span<const int32_t>(fixture.ids),
                     hooks);
    const int n_layers = static_cast<int>(model.layers.size());
    EXPECT_EQ(calls.size(), 11u);
    EXPECT_EQ(calls["after_embedding"], 1);
    EXPECT_EQ(calls["before_final_norm"], 1);
    EXPECT_EQ(calls["before_head"], 1);
    for (const char* hook : {"qkv_input", "q", "k", "v", "o_input", "mlp_input", "layer_output"}) {
      EXPECT_EQ(calls[hook], n_layers) << hook;
    }
    for (int i = 0; i < n_layers; ++i) {
      const MlpDesc& mlp = model.layers[static_cast<size_t>(i)].mlp;
      EXPECT_EQ(routed[i], n * (mlp.n_experts == 0 ? 1 : mlp.top_k));
    }
  }
}

// Turning q and k of a head by the same rotation leaves every score as it was.
TEST(ReferenceForward, HooksMayRotateQueriesAndKeys) {
  const Fixture fixture = open_fixture("qwen3");
  const auto weights = load<double>(fixture.store);
  const int64_t d_head = fixture.store.model().layers[0].attention.d_head;
  const auto turn = [d_head](int, Matrix<double>& x) {
    for (double* v = x.data(); v != x.data() + x.rows() * x.cols(); v += d_head) {
      const double a = v[0], b = v[d_head - 1];
      v[0] = 0.6 * a - 0.8 * b;
      v[d_head - 1] = 0.8 * a + 0.6 * b;
    }
  };
  const std::span<const int32_t> ids(fixture.ids);
  const auto plain = reference_logits(fixture.store.model(), weights, ids);
  const auto both = reference_logits(fixture.store.model(), weights, ids,
                                     ReferenceHooks<double>{.q = turn, .k = turn});
  const auto one =
      reference_logits(fixture.store.model(), weights, ids, ReferenceHooks<double>{.q = turn});
  EXPECT_LT(distance(plain, both), 1e-12 * 100);  // |logits| < 100, a few hundred roundings
  EXPECT_GT(distance(plain, one), 1e-2);
}

TEST(ReferenceForward, APrefixHasTheSameLogits) {
  for (const char* name : {"llama", "gemma2", "mixtral", "gpt2"}) {
    const Fixture fixture = open_fixture(name);
    const auto weights = load<double>(fixture.store);
    const std::span<const int32_t> ids(fixture.ids);
    const auto whole = reference_logits(fixture.store.model(), weights, ids);
    const auto part = reference_logits(fixture.store.model(), weights, ids.first(11));
    EXPECT_LT(distance(part, whole), 1e-12) << name;  // compares part's rows
  }
}

}  // namespace
}  // namespace quern
