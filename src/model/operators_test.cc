// SPDX-License-Identifier: Apache-2.0
// Every family of operators at every site of every fixture: what folds is folded, what does not
// runs online, and the logits stay.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "linalg/decompose.h"
#include "model/changed_model.h"
#include "model/model_test_util.h"

namespace quern {
namespace {

using test::Fixture;
using test::fixture_names;
using test::open_fixture;

// Scales of e^+-1 and well conditioned matrices keep fuse_test's count of roundings.
constexpr double kDoubleTolerance = 1e-10;
constexpr double kFloatTolerance = 1e-4;
constexpr double kMassive = 1e-3;

int64_t width(const ModelDesc& model, Site site, int layer) {
  const LayerDesc& desc = model.layers[static_cast<size_t>(layer)];
  switch (site) {
    case Site::kValue:
    case Site::kQk:
      return desc.attention.d_head;
    case Site::kHeads:
      return desc.attention.n_heads * desc.attention.d_head;
    case Site::kFfn:
      return desc.mlp.d_ffn;
    default:
      return model.d_model;
  }
}

std::vector<float> random_scale(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> scale;
  for (int64_t i = 0; i < n; ++i) {
    scale.push_back(static_cast<float>(random.sign() * std::exp(2 * random.uniform() - 1)));
  }
  return scale;
}

OperatorPtr diagonal(int64_t n, uint64_t seed) { return *make_diagonal(random_scale(n, seed)); }

// Equal for the query heads that share a KV head.
OperatorPtr grouped_diagonal(const AttentionDesc& a, uint64_t seed) {
  const std::vector<float> of_kv = random_scale(a.n_kv_heads * a.d_head, seed);
  std::vector<float> scale;
  for (int64_t head = 0; head < a.n_heads; ++head) {
    const int64_t kv = head / (a.n_heads / a.n_kv_heads);
    scale.insert(scale.end(), of_kv.begin() + kv * a.d_head, of_kv.begin() + (kv + 1) * a.d_head);
  }
  return *make_diagonal(std::move(scale));
}

OperatorPtr permutation(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> order;
  for (int64_t i = 0; i < n; ++i) order.push_back(static_cast<int32_t>(i));
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return *make_permutation(std::move(order));
}

OperatorPtr dense(int64_t n, uint64_t seed) {
  Random random(seed);
  Matrix<double> m(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      m(i, j) = 0.3 * random.gaussian() / std::sqrt(double(n)) + (i == j ? 1 : 0);
    }
  }
  return *make_dense(std::as_const(m).view());
}

template <class T>
double distance(const Matrix<T>& got, const Matrix<T>& expected) {
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < expected.rows() * expected.cols(); ++i) {
    difference = std::max(difference, std::abs(double(got.data()[i]) - double(expected.data()[i])));
    largest = std::max(largest, std::abs(double(expected.data()[i])));
  }
  return difference / largest;
}

template <class T>
double change(const Fixture& fixture, const BasisChange& basis, bool is_online = true) {
  const auto plain = *DenseWeights<T>::load(fixture.store);
  const auto changed = changed_weights(fixture.model(), plain, basis);
  EXPECT_TRUE(changed.has_value());
  const auto hooks = is_online ? online_hooks<T>(fixture.model(), basis) : ReferenceHooks<T>();
  return distance(reference_logits(fixture.model(), *changed, fixture.ids, hooks),
                  reference_logits(fixture.model(), plain, fixture.ids));
}

constexpr Site kSitesInLayers[] = {Site::kValue, Site::kHeads,  Site::kQk,
                                   Site::kFfn,   Site::kAttnIn, Site::kMlpIn};

using Make = std::function<OperatorPtr(int64_t n, uint64_t seed)>;
const std::pair<const char*, Make> kFamilies[] = {
    {"diagonal", diagonal},
    {"permutation", permutation},
    {"dense", dense},
    {"haar", [](int64_t n, uint64_t seed) { return *make_random_orthogonal(n, seed, 0); }},
    {"block_diagonal",
     [](int64_t n, uint64_t) -> OperatorPtr {
       std::vector<Matrix<double>> blocks;
       Random random(9);
       for (int i = 0; i < 2; ++i) blocks.push_back(random_orthogonal(n / 2, random));
       return *make_block_diagonal(blocks);
     }},
    {"dct", [](int64_t n, uint64_t) { return make_dct(n); }}};

TEST(Operators, LeaveTheLogitsAtEverySiteOfEveryFixture) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    for (const auto& [family, make] : kFamilies) {
      BasisChange all;
      for (const Site site : kSitesInLayers) {
        for (int i = 0; i < static_cast<int>(fixture.model().layers.size()); ++i) {
          all.add(site, i, make(width(fixture.model(), site, i), static_cast<uint64_t>(i) + 1));
        }
      }
      ASSERT_TRUE(check_basis(all, fixture.model())) << name;
      EXPECT_LT(change<double>(fixture, all), kDoubleTolerance) << name << " " << family;
      EXPECT_LT(change<float>(fixture, all), kFloatTolerance) << name << " " << family;
    }
  }
}

TEST(Operators, LeaveTheLogitsOneSiteAtATimeAndAreNeeded) {
  for (const char* name : {"llama", "gpt2", "qwen2_moe", "gemma2"}) {
    const Fixture fixture = open_fixture(name);
    for (const Site site : kSitesInLayers) {
      BasisChange basis;
      basis.add(site, 1, dense(width(fixture.model(), site, 1), 3));
      const std::string where = fmt::format("{} {}", name, site_name(site));
      EXPECT_LT(change<double>(fixture, basis), kDoubleTolerance) << where;
      if (site == Site::kValue) continue;  // nothing online
      if (site == Site::kQk) continue;     // nothing folded
      EXPECT_GT(change<double>(fixture, basis, false), kMassive) << where;
    }
  }
}

// A chain of a foldable front and an online rest, as DuQuant and SmoothQuant behind QuaRot make it.
TEST(Operators, TheFrontOfAChainFoldsAndTheRestRunsOnline) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    const ModelDesc& model = fixture.model();
    BasisChange basis;
    for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
      const LayerDesc& layer = model.layers[static_cast<size_t>(i)];
      const auto seed = static_cast<uint64_t>(i) + 1;
      const int64_t d = model.d_model, f = layer.mlp.d_ffn;
      for (const Site site : {Site::kAttnIn, Site::kMlpIn}) {
        basis.add(site, i, diagonal(d, seed));
        basis.add(site, i, diagonal(d, seed + 10));
        basis.add(site, i, permutation(d, seed));
        basis.add(site, i, diagonal(d, seed + 20));
      }
      basis.add(Site::kFfn, i, permutation(f, seed));
      basis.add(Site::kFfn, i, diagonal(f, seed + 1));
      basis.add(Site::kFfn, i, permutation(f, seed + 2));
      basis.add(Site::kFfn, i, dense(f, seed));
      basis.add(Site::kHeads, i, grouped_diagonal(layer.attention, seed));
      const OnlineOperators online = online_operators(basis, model, i);
      EXPECT_EQ(online.attn_in.operators().size(), 2u) << name;
      EXPECT_EQ(online.mlp_in.operators().size(), 2u) << name;
      EXPECT_EQ(online.ffn.operators().size(), layer.mlp.gated ? 1u : 3u) << name;
      EXPECT_TRUE(online.heads.empty()) << name;
    }
    EXPECT_LT(change<double>(fixture, basis), kDoubleTolerance) << name;
    EXPECT_LT(change<float>(fixture, basis), kFloatTolerance) << name;
  }
}

TEST(Operators, ADiagonalThatDiffersBetweenHeadsOfAGroupRunsOnline) {
  const Fixture fixture = open_fixture("llama");  // 4 heads, 2 of them for KV
  ASSERT_LT(fixture.model().layers[0].attention.n_kv_heads,
            fixture.model().layers[0].attention.n_heads);
  BasisChange basis;
  basis.add(Site::kHeads, 0, diagonal(width(fixture.model(), Site::kHeads, 0), 4));
  EXPECT_EQ(online_operators(basis, fixture.model(), 0).heads.operators().size(), 1u);
  EXPECT_TRUE(online_operators(basis, fixture.model(), 1).heads.empty());
  EXPECT_FALSE(is_changed(basis, {Role::kO, 1}));
  EXPECT_TRUE(is_changed(basis, {Role::kO, 0}));
}

TEST(Operators, CostsAreThoseOfWhatRunsOnline) {
  const Fixture fixture = open_fixture("llama");  // d_model 32, 2 layers, d_ffn 48
  const ModelDesc& model = fixture.model();
  BasisChange basis;
  EXPECT_EQ(online_cost(basis, model).flops, 0);
  basis.add(Site::kAttnIn, diagonal(model.d_model, 1));  // folds
  basis.add(Site::kFfn, 1, dense(model.layers[1].mlp.d_ffn, 1));
  const int64_t f = model.layers[1].mlp.d_ffn;
  EXPECT_EQ(online_cost(basis, model).flops, 2 * f * f);
  EXPECT_EQ(online_cost(basis, model).bytes, 4 * f * f);
  basis.add(Site::kResidual, make_signs(model.d_model, 1, 1));
  EXPECT_EQ(online_cost(basis, model).flops, 2 * f * f + 2 * model.d_model);
  basis.form().ends = Ends::kFolded;
  EXPECT_EQ(online_cost(basis, model).flops, 2 * f * f);
}

TEST(Operators, AnEarlierStageStandsBeforeALaterOne) {
  BasisChange basis;
  basis.begin_stage(1);
  basis.add(Site::kFfn, make_signs(8, 1, 1));
  basis.begin_stage(2);
  basis.add(Site::kFfn, make_dct(8));
  basis.begin_stage(0);
  basis.add(Site::kFfn, 3, diagonal(8, 1));
  const auto names = [](const Chain& chain) {
    std::string text;
    for (const OperatorPtr& op : chain.operators()) text += op->to_json()["op"].get<std::string>();
    return text;
  };
  EXPECT_EQ(names(basis.at(Site::kFfn, 3)), "diagonalsignsdct");
  EXPECT_EQ(names(basis.at(Site::kFfn, 2)), "signsdct");
  EXPECT_EQ(names(basis.before_stage(2).at(Site::kFfn, 3)), "diagonalsigns");
  EXPECT_EQ(names(basis.before_stage(1).at(Site::kFfn, 3)), "diagonal");
  EXPECT_TRUE(basis.before_stage(0).at(Site::kFfn, 3).empty());
  EXPECT_EQ(basis.last_layer(), 3);
}

TEST(Operators, CheckBasisRefusesAShearedStreamAndLayersThatAreNotThere) {
  const Fixture fixture = open_fixture("llama");
  BasisChange sheared;
  sheared.add(Site::kResidual, dense(fixture.model().d_model, 1));
  EXPECT_FALSE(check_basis(sheared, fixture.model()));
  BasisChange late;
  late.add(Site::kFfn, 7, diagonal(fixture.model().layers[0].mlp.d_ffn, 1));
  EXPECT_FALSE(check_basis(late, fixture.model()));
}

}  // namespace
}  // namespace quern
