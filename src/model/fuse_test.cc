// SPDX-License-Identifier: Apache-2.0
// A change of basis leaves the function of a model as it was: weights folded in double and run
// with the online operators give the logits of the untouched model, at every site of every fixture.
#include "model/fuse.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "kernels/hadamard.h"
#include "model/changed_model.h"
#include "model/model_test_util.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using test::Fixture;
using test::fixture_names;
using test::open_fixture;

constexpr uint64_t kSeed = 7;
constexpr Site kAllSites[] = {Site::kResidual, Site::kValue, Site::kHeads, Site::kQk, Site::kFfn};
const char* const kDefaultSites = "residual+value+heads+ffn";
const char* const kEverySite = "residual+value+heads+qk+ffn";

// A rotation adds at most n log2(n) <= 96 * 7 roundings to each of the four products of a layer,
// and norms and softmax keep relative errors within a factor of 10 a layer:
//   2.2e-16 * 672 * 4 * 10^3 = 6e-10 in the worst case, its square root of signs 1e-12.
constexpr double kDoubleTolerance = 1e-10;
// The same counts with eps = 6e-8 and errors of random sign: 6e-8 * sqrt(672 * 4) * 10 = 3e-5.
constexpr double kFloatTolerance = 1e-4;
// What leaving out one operator must exceed: no fixture computes nearly the same without it.
constexpr double kMassive = 1e-2;

struct Plan {
  BasisChange basis;
  std::vector<std::string> notes;
  Status status;

  bool mentions(Site site) const {
    const std::string key = fmt::format("site {}", site_name(site));
    return std::any_of(notes.begin(), notes.end(),
                       [&](const std::string& note) { return note.find(key) != note.npos; });
  }
};

Plan rotate(const ModelDesc& model, std::string_view kind, std::string_view sites,
            uint64_t seed = kSeed) {
  const auto call = spec::parse_call(fmt::format("rotate({}, sites={})", kind, sites));
  EXPECT_TRUE(call.has_value());
  const TransformInfo* info = find_transform("rotate");
  const auto params = spec::Params::bind(*call, info->params);
  EXPECT_TRUE(params.has_value()) << (params ? "" : params.error().message);
  const auto transform = info->make(*params);
  EXPECT_TRUE(transform.has_value());
  Plan plan;
  plan.status = (*transform)->plan(model, seed, plan.basis, plan.notes);
  return plan;
}

// The basis each role is folded by; tests of damage give some roles another one.
using BasisOf = std::function<const BasisChange&(Role)>;

template <class T>
DenseWeights<T> folded(const ModelDesc& model, const DenseWeights<T>& original,
                       const BasisOf& basis_of) {
  DenseWeights<T> weights;
  const ModelDesc changed = in_basis(model, basis_of(Role::kEmbed));
  for (const WeightId& id : weight_ids(changed)) {
    const Fold<T> fold(
        model, basis_of(id.role),
        [&](const WeightId& of, Part part) -> Result<Matrix<T>> { return original.get(of, part); });
    for (const Part part : {Part::kWeight, Part::kBias}) {
      if (has_weight(changed, id, part)) weights.edit(id, part) = *fold.part(id, part);
    }
  }
  return weights;
}

// Largest difference over the largest magnitude of `expected`.
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
double change(const Fixture& fixture, const BasisOf& basis_of, const ReferenceHooks<T>& hooks) {
  const std::span<const int32_t> ids(fixture.ids);
  const auto plain = *DenseWeights<T>::load(fixture.store);
  const ModelDesc changed = in_basis(fixture.model(), basis_of(Role::kEmbed));
  return distance(
      reference_logits(changed, folded<T>(fixture.model(), plain, basis_of), ids, hooks),
      reference_logits(fixture.model(), plain, ids));
}

template <class T>
double change(const Fixture& fixture, const BasisChange& basis) {
  return change<T>(
      fixture, [&](Role) -> const BasisChange& { return basis; },
      online_hooks<T>(fixture.model(), basis));
}

std::vector<std::string> site_sets() {
  std::vector<std::string> sets = {kDefaultSites, kEverySite};
  for (const Site site : kAllSites) sets.emplace_back(site_name(site));
  return sets;
}

TEST(Fuse, RotationsLeaveTheLogitsOfEveryFixtureInDouble) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    for (const char* kind : {"rht", "hadamard"}) {
      for (const std::string& sites : site_sets()) {
        const Plan plan = rotate(fixture.model(), kind, sites);
        if (!plan.status) continue;  // declined: another test says when that may be
        ASSERT_TRUE(check_basis(plan.basis, fixture.model())) << name << " " << sites;
        EXPECT_LT(change<double>(fixture, plan.basis), kDoubleTolerance)
            << name << " " << kind << " " << sites;
      }
    }
  }
}

TEST(Fuse, RotationsLeaveTheLogitsOfEveryFixtureInFloat) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    const Plan plan = rotate(fixture.model(), "rht", kEverySite);
    ASSERT_TRUE(plan.status) << name;
    EXPECT_LT(change<float>(fixture, plan.basis), kFloatTolerance) << name;
  }
}

TEST(Fuse, StackedRotationsLeaveTheLogits) {
  const Fixture fixture = open_fixture("llama");
  Plan plan = rotate(fixture.model(), "rht", kEverySite);
  const TransformInfo* info = find_transform("rotate");
  const auto params = spec::Params::bind(*spec::parse_call("rotate(hadamard)"), info->params);
  ASSERT_TRUE((*info->make(*params))->plan(fixture.model(), 8, plan.basis, plan.notes));
  EXPECT_LT(change<double>(fixture, plan.basis), kDoubleTolerance);
}

// What a file says of a basis is enough to make the same operators.
TEST(Fuse, ABasisReadFromJsonIsTheOneWritten) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    const Plan plan = rotate(fixture.model(), "rht", kEverySite);
    const auto read = BasisChange::from_json(plan.basis.to_json());
    ASSERT_TRUE(read.has_value()) << read.error().message;
    EXPECT_EQ(read->to_json(), plan.basis.to_json());
    const auto mixed = change<double>(
        fixture, [&](Role) -> const BasisChange& { return plan.basis; },
        online_hooks<double>(fixture.model(), *read));
    EXPECT_LT(mixed, kDoubleTolerance) << name;
  }
}

// The size a site's Hadamard has, by the model's shape alone; 0: it must be declined.
int64_t expected_size(const ModelDesc& model, Site site) {
  const LayerDesc& first = model.layers[0];
  int64_t size = first.attention.d_head;
  if (site == Site::kHeads) {
    const bool fits = HadamardPlan::make(first.attention.n_heads).has_value();
    return fits ? first.attention.n_heads * first.attention.d_head : 0;
  }
  if (site == Site::kResidual) {
    size = model.d_model;
    for (const LayerDesc& layer : model.layers) {
      const bool has_post = layer.attn_post_norm.kind != NormKind::kNone ||
                            layer.mlp_post_norm.kind != NormKind::kNone;
      if (has_post) return 0;
    }
  }
  if (site == Site::kFfn) {
    size = first.mlp.d_ffn;
    for (const LayerDesc& layer : model.layers) {
      if (layer.mlp.d_ffn != size) return 0;
    }
  }
  if (HadamardPlan::make(size)) return size;
  const int64_t block = grouped_hadamard_size(size);
  return block < 8 ? 0 : block;
}

TEST(Fuse, EverySiteIsRotatedOrDeclinedWithANote) {
  std::map<std::string_view, int> seen;
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    const ModelDesc& model = fixture.model();
    const Plan plan = rotate(model, "hadamard", kEverySite);
    ASSERT_TRUE(plan.status) << name;
    for (const Site site : kAllSites) {
      const std::string where = fmt::format("{} {}", name, site_name(site));
      const int64_t size = expected_size(model, site);
      const Plan alone = rotate(model, "hadamard", site_name(site));
      EXPECT_EQ(alone.status.has_value(), size > 0) << where;
      const auto& operators = plan.basis.at(site).operators();
      if (size == 0) {
        ++seen["declined"];
        EXPECT_TRUE(operators.empty()) << where;
        EXPECT_TRUE(plan.mentions(site)) << where;
        EXPECT_NE(alone.status.error().message.find(site_name(site)), std::string::npos) << where;
        continue;
      }
      ASSERT_EQ(operators.size(), 1u) << where;
      EXPECT_EQ(operators[0]->size(), size) << where;
      ++seen["rotated"];
    }
  }
  EXPECT_GT(seen["declined"], 5);
  EXPECT_GT(seen["rotated"], 20);
}

// 376 = 8 * 47: no Hadamard matrix of order 188 is known to the library, so blocks of 8 turn.
TEST(Fuse, SizesWithoutAHadamardTurnInBlocks) {
  const Fixture fixture = open_fixture("llama");
  ModelDesc model = fixture.model();
  auto weights = *DenseWeights<double>::load(fixture.store);
  const int64_t d_ffn = 376;
  Random random(1);
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
    model.layers[static_cast<size_t>(i)].mlp.d_ffn = d_ffn;
    for (const Role role : {Role::kGate, Role::kUp, Role::kDown}) {
      const Shape shape = weight_shape(model, {role, i});
      Matrix<double>& w = weights.edit({role, i});
      w = Matrix<double>(shape[0], shape[1]);
      for (int64_t j = 0; j < shape[0] * shape[1]; ++j) w.data()[j] = 0.1 * random.gaussian();
    }
  }
  const Plan plan = rotate(model, "rht", "ffn");
  ASSERT_TRUE(plan.status) << plan.status.error().message;
  ASSERT_EQ(plan.notes.size(), 1u);
  EXPECT_NE(plan.notes[0].find("blocks of 8"), std::string::npos) << plan.notes[0];
  ASSERT_TRUE(check_basis(plan.basis, model));
  const std::span<const int32_t> ids(fixture.ids);
  const Matrix<double> plain = reference_logits(model, weights, ids);
  const auto turned =
      folded<double>(model, weights, [&](Role) -> const BasisChange& { return plan.basis; });
  EXPECT_LT(distance(reference_logits(model, turned, ids, online_hooks<double>(model, plan.basis)),
                     plain),
            kDoubleTolerance);
  EXPECT_GT(distance(reference_logits(model, turned, ids), plain), kMassive);
}

// Layers of one model may have different MLPs; that is no reason to leave attention as it is.
TEST(Fuse, LayersOfDifferentWidthKeepOnlyTheirFfn) {
  const Fixture fixture = open_fixture("qwen3_moe");
  const Plan plan = rotate(fixture.model(), "rht", kDefaultSites);
  ASSERT_TRUE(plan.status);
  EXPECT_TRUE(plan.basis.at(Site::kFfn).empty());
  EXPECT_TRUE(plan.mentions(Site::kFfn));
  EXPECT_FALSE(plan.basis.at(Site::kResidual).empty());
  EXPECT_FALSE(plan.basis.at(Site::kValue).empty());
}

constexpr const char* kLayerNormModels[] = {"gpt2", "opt", "gpt_neox", "gpt_neox-serial"};

TEST(Fuse, LayerNormsBecomeRmsNormsOfAStreamWithoutMean) {
  for (const char* name : kLayerNormModels) {
    const Fixture fixture = open_fixture(name);
    for (const char* ends : {"online", "folded"}) {
      const Plan plan = rotate(fixture.model(), "rht", fmt::format("residual, ends={}", ends));
      ASSERT_TRUE(plan.status) << name;
      ASSERT_TRUE(check_form(plan.basis, fixture.model()));
      const ModelDesc changed = in_basis(fixture.model(), plan.basis);
      for (const LayerDesc& layer : changed.layers) {
        for (const NormDesc& norm : {layer.attn_norm, layer.mlp_norm}) {
          EXPECT_EQ(norm.kind, NormKind::kRms) << name;
          EXPECT_FALSE(norm.has_bias) << name;
        }
        EXPECT_TRUE(layer.attention.qkv_bias && layer.mlp.bias) << name;
      }
      EXPECT_LT(change<double>(fixture, plan.basis), kDoubleTolerance) << name << " " << ends;
      EXPECT_LT(change<float>(fixture, plan.basis), kFloatTolerance) << name << " " << ends;
    }
  }
}

// The conversion alone, with nothing turned; and each half of it without the other.
TEST(Fuse, TheMeanMustBeTakenFromAllThatIsWritten) {
  for (const char* name : kLayerNormModels) {
    const Fixture fixture = open_fixture(name);
    BasisChange centred;
    centred.form().is_centred = true;
    EXPECT_LT(change<double>(fixture, centred), kDoubleTolerance) << name;
    ReferenceHooks<double> hooks = online_hooks<double>(fixture.model(), centred);
    hooks.after_embedding = nullptr;
    EXPECT_GT(change<double>(
                  fixture, [&](Role) -> const BasisChange& { return centred; }, hooks),
              1e-5)
        << name << " without the embedding's mean";
  }
}

// A bias of a LayerNorm needs a bias behind it, also where the model has none.
TEST(Fuse, BiasesOfLayerNormsMoveIntoModelsWithoutBiases) {
  const Fixture fixture = open_fixture("opt");
  ModelDesc model = fixture.model();
  for (LayerDesc& layer : model.layers) {
    layer.attention.qkv_bias = layer.attention.o_bias = layer.mlp.bias = false;
  }
  const auto weights = *DenseWeights<double>::load(fixture.store);
  for (const char* ends : {"online", "folded"}) {
    const Plan plan = rotate(model, "rht", fmt::format("residual+value+ffn, ends={}", ends));
    ASSERT_TRUE(plan.status);
    const auto changed = changed_weights(model, weights, plan.basis);
    ASSERT_TRUE(changed.has_value());
    const std::span<const int32_t> ids(fixture.ids);
    EXPECT_LT(distance(reference_logits(in_basis(model, plan.basis), *changed, ids,
                                        online_hooks<double>(model, plan.basis)),
                       reference_logits(model, weights, ids)),
              kDoubleTolerance)
        << ends;
  }
}

// One matrix still serves both ends of a tied model.
TEST(Fuse, TurnedEndsStayTiedAndAreInTheBasisOfTheStream) {
  int n_turned = 0;
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    for (const char* kind : {"rht", "haar"}) {
      const Plan plan = rotate(fixture.model(), kind, "residual, ends=turned");
      if (!plan.status) continue;  // norms behind attention and MLP
      ASSERT_TRUE(check_form(plan.basis, fixture.model())) << name;
      const ModelDesc changed = in_basis(fixture.model(), plan.basis);
      EXPECT_EQ(changed.tied_head, fixture.model().tied_head) << name;
      EXPECT_LT(change<double>(fixture, plan.basis), kDoubleTolerance) << name << " " << kind;
      if (plan.basis.form().ends != Ends::kTurned) continue;  // more than an embedding
      ++n_turned;
      ReferenceHooks<double> hooks = online_hooks<double>(fixture.model(), plan.basis);
      EXPECT_FALSE(hooks.after_embedding);
      hooks.before_head = nullptr;
      EXPECT_GT(change<double>(
                    fixture, [&](Role) -> const BasisChange& { return plan.basis; }, hooks),
                1e-5)
          << name << " without the turn before the head";
    }
  }
  EXPECT_GT(n_turned, 10);
}

TEST(Fuse, FoldedEndsUntieTheHeadAndLeaveNothingOnline) {
  for (const std::string& name : fixture_names()) {
    const Fixture fixture = open_fixture(name);
    for (const char* kind : {"rht", "haar", "dct"}) {
      const Plan plan = rotate(fixture.model(), kind, "residual, ends=folded");
      if (!plan.status) continue;  // norms behind attention and MLP
      EXPECT_FALSE(in_basis(fixture.model(), plan.basis).tied_head);
      const ReferenceHooks<double> hooks = online_hooks<double>(fixture.model(), plan.basis);
      EXPECT_FALSE(hooks.after_embedding || hooks.before_final_norm);
      EXPECT_LT(change<double>(fixture, plan.basis), kDoubleTolerance) << name << " " << kind;
    }
  }
}

TEST(Fuse, SeedsChangeSignsAndTheKindDropsThem) {
  const Fixture fixture = open_fixture("llama");
  const Json first = rotate(fixture.model(), "rht", kDefaultSites, 1).basis.to_json();
  EXPECT_EQ(rotate(fixture.model(), "rht", kDefaultSites, 1).basis.to_json(), first);
  EXPECT_NE(rotate(fixture.model(), "rht", kDefaultSites, 2).basis.to_json(), first);
  EXPECT_EQ(rotate(fixture.model(), "hadamard", kDefaultSites, 1).basis.to_json(),
            rotate(fixture.model(), "hadamard", kDefaultSites, 2).basis.to_json());
}

std::string sites_without(Site left_out) {
  std::string sites;
  for (const Site site : kAllSites) {
    if (site != left_out) sites += fmt::format("{}{}", sites.empty() ? "" : "+", site_name(site));
  }
  return sites;
}

// For every operator: without its online half, or without its fused half, the model is another.
TEST(Fuse, EveryHalfOfEveryOperatorIsNeeded) {
  for (const char* name : {"llama", "mixtral", "llama-llama3"}) {
    const Fixture fixture = open_fixture(name);
    const Plan full = rotate(fixture.model(), "rht", kEverySite);
    const BasisOf whole = [&](Role) -> const BasisChange& { return full.basis; };
    for (const Site site : kAllSites) {
      if (full.basis.at(site).empty()) continue;
      const Plan part = rotate(fixture.model(), "rht", sites_without(site));
      const std::string where = fmt::format("{} {}", name, site_name(site));
      if (site == Site::kResidual || site == Site::kHeads || site == Site::kFfn) {
        EXPECT_GT(change<double>(fixture, whole, online_hooks<double>(fixture.model(), part.basis)),
                  kMassive)
            << where << " without its online operator";
        EXPECT_GT(change<double>(
                      fixture, [&](Role) -> const BasisChange& { return part.basis; },
                      online_hooks<double>(fixture.model(), full.basis)),
                  kMassive)
            << where << " without its fused operator";
      }
      if (site == Site::kValue) {
        for (const Role role : {Role::kV, Role::kO}) {
          EXPECT_GT(
              change<double>(
                  fixture,
                  [&](Role r) -> const BasisChange& { return r == role ? part.basis : full.basis; },
                  online_hooks<double>(fixture.model(), full.basis)),
              kMassive)
              << where << " without " << role_name(role);
        }
      }
    }
    ReferenceHooks<double> hooks = online_hooks<double>(fixture.model(), full.basis);
    hooks.q = nullptr;
    EXPECT_GT(change<double>(fixture, whole, hooks), kMassive) << name << " without q";
    hooks = online_hooks<double>(fixture.model(), full.basis);
    hooks.k = nullptr;
    EXPECT_GT(change<double>(fixture, whole, hooks), kMassive) << name << " without k";
    hooks = online_hooks<double>(fixture.model(), full.basis);
    hooks.after_embedding = nullptr;
    EXPECT_GT(change<double>(fixture, whole, hooks), kMassive) << name << " without the start";
    hooks = online_hooks<double>(fixture.model(), full.basis);
    hooks.before_final_norm = nullptr;
    EXPECT_GT(change<double>(fixture, whole, hooks), kMassive) << name << " without the end";
  }
}

TEST(Fuse, CheckBasisRefusesSizesThatDoNotFit) {
  const Fixture fixture = open_fixture("llama");  // d_model 32, d_head 8, 4 heads, d_ffn 48
  const std::pair<Site, int64_t> wrong[] = {{Site::kResidual, 64},
                                            {Site::kValue, 16},
                                            {Site::kQk, 12},
                                            {Site::kHeads, 64},
                                            {Site::kFfn, 32}};
  for (const auto& [site, size] : wrong) {
    BasisChange basis;
    basis.add(site, make_signs(size, 1, 1));
    const Status status = check_basis(basis, fixture.model());
    ASSERT_FALSE(status.has_value()) << site_name(site);
    EXPECT_NE(status.error().message.find(site_name(site)), std::string::npos);
  }
}

}  // namespace
}  // namespace quern
