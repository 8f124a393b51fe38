// SPDX-License-Identifier: Apache-2.0
// Transforms alone, with nothing coded, through files: the model that is written computes what the
// source computes.
#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "base/random.h"
#include "eval/evaluate.h"
#include "fixtures.h"
#include "model/changed_model.h"
#include "model/model.h"
#include "recipe/compress.h"
#include "scratch.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

using test::fixture;
using test::fixtures;
using test::ScratchFolder;
using test::small;

Matrix<float> logits_of(const std::string& path) {
  const auto model = Model::open(path);
  EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
  if (!model) return {};
  const ModelDesc& desc = (*model)->desc();
  Random random(5);
  std::vector<Token> ids;
  for (int i = 0; i < 24; ++i) {
    ids.push_back(static_cast<Token>(random.below(static_cast<uint64_t>(desc.n_vocab))));
  }
  auto cache = (*model)->make_cache(24, KvRecipe::plain(DType::kF32));
  Matrix<float> hidden(24, desc.d_model), logits(24, desc.n_vocab);
  EXPECT_TRUE((*model)->forward(*cache, ids, hidden.view()));
  (*model)->logits(hidden.view(), logits.view());
  return logits;
}

double distance(const Matrix<float>& got, const Matrix<float>& expected) {
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < expected.rows() * expected.cols(); ++i) {
    difference = std::max(difference, std::abs(double(got.data()[i]) - double(expected.data()[i])));
    largest = std::max(largest, std::abs(double(expected.data()[i])));
  }
  return difference / largest;
}

// Sums in another order, at most 96 terms.
constexpr double kReordered = 1e-5;
// Weights rounded again to the fixture's type, bfloat16 for some: 2^-9 each, about 100 of them a
// sum with random signs, four products deep, over a sum of random signs itself.
constexpr double kRounded = 2e-2;

void expect_same_function(const std::string& name, const std::string& recipe, double tolerance) {
  const ScratchFolder scratch;
  const auto result = compress(small(fixture(name), scratch / "out", recipe));
  ASSERT_TRUE(result.has_value()) << name << " " << recipe << ": " << result.error().message;
  EXPECT_LT(distance(logits_of(scratch / "out"), logits_of(fixture(name))), tolerance)
      << name << " " << recipe;
}

TEST(Transforms, ThatAreFittedLeaveTheLogitsOfEveryFixture) {
  for (const std::string& name : fixtures()) {
    expect_same_function(name, "sort", kReordered);
    expect_same_function(name, "sort | rotate", kRounded);
    expect_same_function(name, "smooth(sites=attn_in+heads+mlp_in+ffn)", kRounded);
    expect_same_function(name, "smooth(0.85, weights=none) | sort | rotate", kRounded);
    expect_same_function(name, "awq(int(3, group=16), points=3, rows=20)", kRounded);
    expect_same_function(name, "sort | rotate(ends=folded)", kRounded);
    expect_same_function(name, "sort | rotate(ends=turned)", kRounded);
    expect_same_function(name, "duquant(block=16, steps=3)", kRounded);
    expect_same_function(
        name, "smooth(0.6, sites=attn_in+heads+mlp_in+ffn) | duquant(block=16, steps=3)", kRounded);
  }
}

bool is_cut_by_slice(const std::string& name) { return name != "gemma2"; }

TEST(Transforms, SliceOfNothingLeavesTheLogits) {
  for (const std::string& name : fixtures()) {
    if (is_cut_by_slice(name)) expect_same_function(name, "slice(0)", kRounded);
  }
}

// The runtime against the reference forward, on the written model: widths, divisors, what goes
// past.
TEST(Transforms, ASlicedModelRunsAsItsDescriptionSays) {
  for (const std::string& name : fixtures()) {
    if (!is_cut_by_slice(name)) continue;
    const ScratchFolder scratch;
    const std::string recipe = "slice(0.4, multiple=4) | sort | rotate(sites=value+ffn)";
    const auto result = compress(small(fixture(name), scratch / "out", recipe));
    ASSERT_TRUE(result.has_value()) << name << ": " << result.error().message;
    const auto store = WeightStore::open(scratch / "out");
    ASSERT_TRUE(store.has_value()) << store.error().message;
    const ModelDesc& desc = store->model();
    EXPECT_LT(desc.width_embed(), desc.d_model) << name;
    Random random(5);
    std::vector<int32_t> ids;
    for (int i = 0; i < 24; ++i) {
      ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(desc.n_vocab))));
    }
    const auto weights = *DenseWeights<float>::load(*store);
    const Matrix<float> expected =
        reference_logits(desc, weights, ids, online_hooks<float>(desc, store->packed().basis));
    EXPECT_LT(distance(logits_of(scratch / "out"), expected), 1e-4) << name;
  }
}

TEST(Transforms, ASlicedModelIsCodedOnTop) {
  for (const char* name : {"llama", "gpt2", "gpt_neox", "qwen2_moe"}) {
    const ScratchFolder scratch;
    const std::string recipe =
        "slice(0.25) | rotate(sites=value+ffn) | rtn(int(8)) @ embed | ldlq(int(8, group=8))";
    const auto result = compress(small(fixture(name), scratch / "out", recipe));
    ASSERT_TRUE(result.has_value()) << name << ": " << result.error().message;
    EXPECT_LT(result->output_error, 1e-2) << name;
    const auto files = ModelFiles::open(scratch / "out");
    ASSERT_TRUE(files.has_value());
    EXPECT_LT((*files)->n_stored_params(), 2 * (*files)->n_params());
    EXPECT_EQ((*files)->store().checkpoint().find("quern.journal.slice.0"), nullptr);
    EXPECT_GT(logits_of(scratch / "out").rows(), 0);
  }
}

TEST(Transforms, AFittedOperatorStandsInTheFileBeforeAPlannedOne) {
  const ScratchFolder scratch;
  ASSERT_TRUE(compress(small(fixture("llama"), scratch / "out", "sort | rotate(sites=ffn)")));
  const auto files = ModelFiles::open(scratch / "out");
  ASSERT_TRUE(files.has_value());
  for (int layer = 0; layer < 2; ++layer) {
    const auto& operators = (*files)->basis().at(Site::kFfn, layer).operators();
    ASSERT_EQ(operators.size(), 3u);
    EXPECT_EQ(operators[0]->kind(), OperatorKind::kPermutation);
    EXPECT_EQ(operators[1]->to_json()["op"], "signs");
  }
  EXPECT_FALSE((*files)->basis().at(Site::kFfn, 0).operators()[0]->tensors()[0].bytes ==
               (*files)->basis().at(Site::kFfn, 1).operators()[0]->tensors()[0].bytes);
}

double perplexity(const Matrix<float>& logits, std::span<const Token> ids) {
  double nats = 0;
  for (int64_t i = 0; i + 1 < logits.rows(); ++i) {
    double sum = 0;
    for (int64_t j = 0; j < logits.cols(); ++j) sum += std::exp(double(logits(i, j)));
    nats += std::log(sum) - logits(i, ids[static_cast<size_t>(i) + 1]);
  }
  return std::exp(nats / double(logits.rows() - 1));
}

// The weights of the bundled model as a rotated file holds them, run with all that must be done
// online and then with one operator left out.
TEST(Transforms, LeavingOutOneOnlineOperatorDestroysTheBundledModel) {
  const std::string tiny = QUERN_SOURCE_DIR "/models/tiny";
  const ScratchFolder scratch;
  const std::string recipe = "rotate(rht, sites=residual+value+heads+qk+ffn)";
  ASSERT_TRUE(compress(small(tiny, scratch / "out", recipe)));
  const auto store = WeightStore::open(scratch / "out");
  ASSERT_TRUE(store.has_value()) << store.error().message;
  const ModelDesc& desc = store->model();
  const auto weights = *DenseWeights<float>::load(*store);
  const auto original = WeightStore::open(tiny);
  const auto original_weights = *DenseWeights<float>::load(*original);
  const auto text = read_file(QUERN_SOURCE_DIR "/models/evaluation.txt");
  ASSERT_TRUE(text.has_value());
  std::vector<Token> ids = (*Tokenizer::open(tiny))->tokenize(text->substr(0, 2000));
  ASSERT_GT(ids.size(), 96u);
  ids.resize(96);

  using Hooks = ReferenceHooks<float>;
  const Hooks whole = online_hooks<float>(desc, store->packed().basis);
  const auto with = [&](const Hooks& hooks) {
    return perplexity(reference_logits(desc, weights, ids, hooks), ids);
  };
  const double expected =
      perplexity(reference_logits(original->model(), original_weights, ids), ids);
  EXPECT_NEAR(with(whole) / expected, 1, 1e-2);  // weights are rounded to bfloat16 again
  const std::pair<const char*, std::function<void(Hooks&)>> damages[] = {
      {"the start of the stream", [](Hooks& hooks) { hooks.after_embedding = nullptr; }},
      {"the end of the stream", [](Hooks& hooks) { hooks.before_final_norm = nullptr; }},
      {"heads", [](Hooks& hooks) { hooks.o_input = nullptr; }},
      {"ffn", [](Hooks& hooks) { hooks.down_input = nullptr; }},
      {"q", [](Hooks& hooks) { hooks.q = nullptr; }},
      {"k", [](Hooks& hooks) { hooks.k = nullptr; }},
  };
  for (const auto& [what, damage] : damages) {
    Hooks hooks = whole;
    damage(hooks);
    EXPECT_GT(with(hooks), 5 * expected) << "without " << what;
  }
}

}  // namespace
}  // namespace quern
