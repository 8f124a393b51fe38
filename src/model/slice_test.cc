// SPDX-License-Identifier: Apache-2.0
// Sliced streams in the reference forward, in double: what is not cut, or holds nothing, changes
// nothing.
#include <gtest/gtest.h>

#include "base/random.h"
#include "linalg/decompose.h"
#include "model/changed_model.h"
#include "model/model_test_util.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;
using test::read_json;

constexpr double kDoubleTolerance = 1e-10;  // as in fuse_test

struct Fixture {
  WeightStore store;
  std::vector<int32_t> ids;
};

Fixture open_fixture(const std::string& name) {
  auto store = WeightStore::open(fixture_path(name));
  EXPECT_TRUE(store.has_value()) << (store ? "" : store.error().message);
  return {*std::move(store), read_json(fixture_path(name) + "/golden.json")["ids"]};
}

bool has_layer_norms(const ModelDesc& model) {
  return model.layers[0].attn_norm.kind == NormKind::kLayer;
}

// Every place keeps `width` directions of a random basis, or of the standard one.
BasisChange cut(const ModelDesc& model, int64_t width, bool is_turned) {
  BasisChange basis;
  const auto n_places = static_cast<int>(2 * model.layers.size() + 1);
  basis.form().ends = Ends::kFolded;
  basis.form().is_centred = has_layer_norms(model);
  basis.form().widths.assign(static_cast<size_t>(n_places), width);
  basis.form().widths.back() = model.d_model;
  for (int place = 0; place + 1 < n_places; ++place) {
    Random random(static_cast<uint64_t>(place));
    Matrix<double> all(model.d_model, model.d_model);
    for (int64_t i = 0; i < model.d_model; ++i) all(i, i) = 1;
    if (is_turned) all = random_orthogonal(model.d_model, random);
    auto q = std::make_shared<Matrix<double>>(model.d_model, width);
    for (int64_t i = 0; i < model.d_model; ++i) std::copy_n(all.row(i), width, q->row(i));
    basis.set_slice(place, std::move(q));
  }
  return basis;
}

double change(const ModelDesc& model, const DenseWeights<double>& weights, const BasisChange& basis,
              std::span<const int32_t> ids) {
  const auto changed = changed_weights(model, weights, basis);
  EXPECT_TRUE(changed.has_value());
  const ModelDesc desc = in_basis(model, basis);
  const Matrix<double> got =
      reference_logits(desc, *changed, ids, online_hooks<double>(model, basis));
  const Matrix<double> expected = reference_logits(model, weights, ids);
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < got.rows() * got.cols(); ++i) {
    difference = std::max(difference, std::abs(got.data()[i] - expected.data()[i]));
    largest = std::max(largest, std::abs(expected.data()[i]));
  }
  return difference / largest;
}

TEST(Slice, KeepingEveryDirectionInADifferentBasisAtEveryPlaceChangesNothing) {
  int n_tested = 0;
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    const ModelDesc& model = fixture.store.model();
    const BasisChange basis = cut(model, model.d_model, true);
    if (!check_form(basis, model)) continue;  // norms behind attention and MLP
    const auto weights = *DenseWeights<double>::load(fixture.store);
    EXPECT_LT(change(model, weights, basis, fixture.ids), kDoubleTolerance) << name;
    ++n_tested;
  }
  EXPECT_GT(n_tested, 15);
}

// A stream that leaves its last directions empty loses nothing with them, if and only if norms
// still divide by the original width.
TEST(Slice, DirectionsThatHoldNothingCanBeCut) {
  for (const char* name : {"llama", "mixtral", "qwen2_moe", "phi3"}) {
    const Fixture fixture = open_fixture(name);
    const ModelDesc& model = fixture.store.model();
    const int64_t width = model.d_model * 3 / 4;
    auto weights = *DenseWeights<double>::load(fixture.store);
    for (const WeightId& id : weight_ids(model)) {
      const bool is_row = id.role == Role::kEmbed;
      const bool is_column =
          id.role == Role::kO || id.role == Role::kDown || id.role == Role::kSharedDown;
      if (!is_row && !is_column) continue;
      Matrix<double>& w = weights.edit(id);
      for (int64_t i = 0; i < w.rows(); ++i) {
        for (int64_t j = 0; j < w.cols(); ++j) {
          if ((is_row ? j : i) >= width) w(i, j) = 0;
        }
      }
    }
    const BasisChange basis = cut(model, width, false);
    EXPECT_LT(change(model, weights, basis, fixture.ids), kDoubleTolerance) << name;
    EXPECT_GT(change(model, weights, cut(model, width / 2, false), fixture.ids), 1e-3) << name;
  }
}

TEST(Slice, ParametersAreThoseOfTheFormula) {
  const Fixture fixture = open_fixture("llama");
  const ModelDesc& model = fixture.store.model();
  const LayerDesc& layer = model.layers[0];
  const int64_t d = 24, full = model.d_model, f = layer.mlp.d_ffn, v = model.n_vocab;
  const int64_t q = layer.attention.n_heads * layer.attention.d_head;
  const int64_t kv = layer.attention.n_kv_heads * layer.attention.d_head;
  const auto n = static_cast<int64_t>(model.layers.size());
  // Card: D'(nh dh + 2 nkv dh) + D' nh dh + 3 f D' + 2 D'^2 a layer, V D' + V D at the ends; the
  // last layer writes all D, and norms keep their gains.
  int64_t expected = n * (d * (q + 2 * kv) + d * q + 3 * f * d + 2 * d * d + 2 * d);
  expected += (full - d) * (f + d) + v * d + v * full + full;
  const ModelDesc changed = in_basis(model, cut(model, d, false));
  EXPECT_EQ(count_parameters(changed), expected);
}

TEST(Slice, FormsThatDoNotFitAreRefused) {
  const Fixture fixture = open_fixture("llama");
  const ModelDesc& model = fixture.store.model();
  const BasisChange sound = cut(model, 16, false);
  ASSERT_TRUE(check_form(sound, model));
  const auto expect_refused = [&](const auto& damage) {
    BasisChange basis = sound;
    damage(basis.form());
    EXPECT_FALSE(check_form(basis, model));
  };
  expect_refused([](StreamForm& form) { form.widths.pop_back(); });
  expect_refused([](StreamForm& form) { form.widths.back() = 16; });
  expect_refused([](StreamForm& form) { form.widths[1] = 33; });
  expect_refused([](StreamForm& form) { form.widths[0] = 0; });
  expect_refused([](StreamForm& form) { form.ends = Ends::kOnline; });
  BasisChange turned = sound;
  turned.add(Site::kResidual, make_signs(16, 1, 1));
  EXPECT_FALSE(check_form(turned, model));
  const Fixture post = open_fixture("gemma2");
  EXPECT_FALSE(check_form(cut(post.store.model(), 16, false), post.store.model()));
}

TEST(Slice, AFormIsReadAsItWasWritten) {
  const Fixture fixture = open_fixture("opt");
  const BasisChange basis = cut(fixture.store.model(), 16, false);
  const auto read = BasisChange::from_json(basis.to_json());
  ASSERT_TRUE(read.has_value());
  EXPECT_TRUE(read->form() == basis.form());
  for (const char* wrong :
       {R"({"form": 7})", R"({"form": {"norms": "layer"}})", R"({"form": {"widths": [0]}})",
        R"({"form": {"widths": ["8"]}})", R"({"form": {"widths": 8}})", R"({"form": {"x": 1}})"}) {
    EXPECT_FALSE(BasisChange::from_json(Json::parse(wrong))) << wrong;
  }
}

}  // namespace
}  // namespace quern
