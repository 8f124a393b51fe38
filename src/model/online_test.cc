// SPDX-License-Identifier: Apache-2.0
// Products that take their rows through online operators as they round them give the bits of rows
// that went through these before.
#include "model/online.h"

#include <gtest/gtest.h>

#include "base/parallel.h"
#include "gaussian.h"
#include "linalg/decompose.h"
#include "model/linear.h"
#include "model/model.h"
#include "model/synthetic.h"

namespace quern {
namespace {

constexpr int64_t kOut = 70, kIn = 384;

OperatorPtr diagonal() {
  Random random(3);
  std::vector<float> scale;
  for (int64_t i = 0; i < kIn; ++i) scale.push_back(static_cast<float>(1 + random.uniform()));
  return *make_diagonal(std::move(scale));
}

OperatorPtr reversed() {
  std::vector<int32_t> order;
  for (int64_t i = kIn; i-- > 0;) order.push_back(static_cast<int32_t>(i));
  return *make_permutation(std::move(order));
}

OperatorPtr rotation(int64_t block, uint64_t seed) {
  Random random(seed);
  std::vector<Matrix<double>> blocks;
  for (int64_t i = 0; i < kIn / block; ++i) blocks.push_back(random_orthogonal(block, random));
  return *make_block_diagonal(blocks);
}

struct NamedChain {
  const char* name;
  Chain chain;
};

// What the transforms leave online, and each family alone.
std::vector<NamedChain> chains() {
  const auto chain_of = [](std::initializer_list<OperatorPtr> operators) {
    Chain chain;
    for (const OperatorPtr& op : operators) chain.add(op);
    return chain;
  };
  return {{"none", {}},
          {"smooth", chain_of({diagonal()})},
          {"sort", chain_of({reversed()})},
          {"signs", chain_of({make_signs(kIn, 1, 0)})},
          {"hadamard", chain_of({*make_hadamard(kIn)})},
          {"rotate", chain_of({make_signs(kIn, 1, 0), *make_hadamard(kIn)})},
          {"blocks of a rotation", chain_of({make_signs(kIn, 1, 0), *make_hadamard(64)})},
          {"heads", chain_of({*make_head_axis(12, kIn / 12)})},
          {"haar", chain_of({*make_random_orthogonal(kIn, 5, 0)})},
          {"dct", chain_of({make_dct(kIn)})},
          {"duquant", chain_of({rotation(128, 7), reversed(), rotation(128, 8)})},
          {"smooth, rotate", chain_of({diagonal(), make_signs(kIn, 1, 0), *make_hadamard(kIn)})}};
}

// Row by row, by the operators one after another.
Matrix<float> behind(const Chain& chain, const Matrix<float>& x) {
  Matrix<float> y = x;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (const OperatorPtr& op : chain.operators()) op->apply(y.row(i), x.cols());
  }
  return y;
}

std::shared_ptr<const ActRounding> rounding(std::string_view text) {
  std::shared_ptr<const ActQuantizer> act = *make_act(text);
  const std::vector<float> low(kIn, -2.0f), high(kIn, 2.0f);
  std::vector<float> ranges = act->ranges(low, high);
  return std::make_shared<ActRounding>(ActRounding{std::move(act), std::move(ranges)});
}

LinearWeight weight_of(const char* codec, const char* act, uint64_t seed,
                       Activations activations = Activations::kInt8) {
  LinearWeight weight = *synthetic_linear(codec, kOut, kIn, seed, activations);
  if (act != nullptr) weight.rounding = rounding(act);
  weight.bias.assign(kOut, 0.25f);
  return weight;
}

struct Set {
  const char* name;
  std::vector<LinearWeight> weights;
};

std::vector<Set> sets() {
  const char* const four = "int(4, group=64)";
  return {
      {"8 bits in groups", {weight_of(four, nullptr, 1)}},
      {"alike", {weight_of(four, "int(4, clip=0.9)", 1), weight_of(four, "int(4, clip=0.9)", 2)}},
      {"static", {weight_of("int(8, group=0)", "int(8, per=tensor, scale=static)", 1)}},
      {"zero point", {weight_of(four, "int(4, sym=false)", 1)}},
      {"groups", {weight_of(four, "int(6, per=group, group=128)", 1)}},
      {"to floats", {weight_of("float(e4m3)", "fp8", 1), weight_of("float(e4m3)", "fp8", 2)}},
      {"unlike", {weight_of(four, "int(4)", 1), weight_of(four, "int(8)", 2)}},
      {"unlike groups", {weight_of(four, nullptr, 1), weight_of("int(8, group=32)", nullptr, 2)}},
      {"both ways", {weight_of("float(e4m3)", "fp8", 1), weight_of(four, "int(8)", 2)}},
      {"in float", {weight_of(four, nullptr, 1, Activations::kExact)}},
      {"one in float",
       {weight_of(four, nullptr, 1), weight_of(four, nullptr, 2, Activations::kExact)}}};
}

std::vector<Matrix<float>> products_of(const Set& set, MatrixView<const float> x,
                                       const OnlineChain& online) {
  std::vector<Matrix<float>> results;
  std::vector<Product> products;
  for (size_t i = 0; i < set.weights.size(); ++i) results.emplace_back(x.rows, kOut);
  for (size_t i = 0; i < set.weights.size(); ++i) {
    products.push_back({&set.weights[i], results[i].view()});
  }
  linear(products, x, online);
  return results;
}

TEST(Online, ProductsHaveTheBitsOfRowsThatWentThroughTheChainBefore) {
  const std::vector<Set> all = sets();
  for (const auto& [name, chain] : chains()) {
    for (const int64_t n : {1, 2, 21, 45}) {  // 21 rows go through a chain together
      const Matrix<float> x = gaussian(n, kIn, 4), turned = behind(chain, x);
      for (const Set& set : all) {
        SCOPED_TRACE(fmt::format("{}, {}, {} rows", name, set.name, n));
        const auto expected = products_of(set, turned.view(), {});
        for (const int threads : {1, 2}) {
          set_thread_count(threads);
          const Matrix<float> before = x;
          EXPECT_EQ(products_of(set, x.view(), {&chain}), expected) << threads << " threads";
          EXPECT_EQ(x, before);
        }
        set_thread_count(0);
      }
    }
  }
}

TEST(Online, RowsOfAWiderMatrixAreReadAlone) {
  const Set set = {"", {weight_of("int(4, group=64)", nullptr, 1)}};
  for (const auto& [name, chain] : chains()) {
    Matrix<float> wide = gaussian(9, kIn + 5, 4), x(9, kIn);
    for (int64_t i = 0; i < 9; ++i) std::copy_n(wide.row(i) + 3, kIn, x.row(i));
    EXPECT_EQ(products_of(set, std::as_const(wide).view().col_range(3, kIn), {&chain}),
              products_of(set, behind(chain, x).view(), {}))
        << name;
  }
}

TEST(Online, GatedProductsToo) {
  for (const auto& [name, chain] : chains()) {
    for (const char* of_up : {"int(4, group=64)", "int(8, group=32)"}) {  // together, and apart
      const LinearWeight gate = weight_of("int(4, group=64)", nullptr, 1);
      const LinearWeight up = weight_of(of_up, nullptr, 2);
      for (const int64_t n : {1, 45}) {
        const Matrix<float> x = gaussian(n, kIn, 4), turned = behind(chain, x);
        Matrix<float> y(n, kOut), expected(n, kOut);
        linear_gated(gate, up, Activation::kSilu, turned.view(), expected.view());
        for (const int threads : {1, 2}) {
          set_thread_count(threads);
          linear_gated(gate, up, Activation::kSilu, x.view(), y.view(), {&chain});
          EXPECT_EQ(y, expected) << name << " " << of_up << " " << n;
        }
        set_thread_count(0);
      }
    }
  }
}

TEST(Online, TimeIsCountedWhereverAChainIsApplied) {
  Chain chain;
  chain.add(make_dct(kIn));
  const Matrix<float> x = gaussian(45, kIn, 4);
  for (const Set& set : sets()) {
    SpentTime time;
    products_of(set, x.view(), {&chain, &time});
    EXPECT_GT(time.nanoseconds.load(), 0) << set.name;
  }
  SpentTime time;
  const Chain none;
  products_of(sets()[0], x.view(), {&none, &time});
  EXPECT_EQ(time.nanoseconds.load(), 0);
}

class Look final : public LayerTap {
 public:
  bool input(Role, int, MatrixView<const float>) override { return true; }
};

// A tap sees rows behind their operators, so these are applied apart.
TEST(Online, AModelUnderATapHasTheBitsOfOneWithout) {
  for (const char* act : {"", "int(8)"}) {
    SyntheticOptions options;
    options.codec = "int(4, group=64)";
    options.activations = Activations::kInt8;
    options.act = act;
    for (const auto& [site, n] : {std::pair{Site::kAttnIn, 256},
                                  {Site::kMlpIn, 256},
                                  {Site::kHeads, 256},
                                  {Site::kFfn, 768}}) {
      options.basis.add(site, make_signs(n, 1, static_cast<uint64_t>(site)));
      options.basis.add(site, *make_hadamard(n));
    }
    const auto model = synthetic_model("tiny", options);
    ASSERT_TRUE(model) << model.error().message;
    Look look;
    std::vector<Token> ids(33);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<Token>(i);
    std::vector<Matrix<float>> hidden;
    for (const auto& tap : {Model::Taps(), Model::Taps([&](int) { return &look; })}) {
      KvCache cache = *(*model)->make_cache(64);
      Matrix<float>& rows = hidden.emplace_back(33, 256);
      ASSERT_TRUE(
          (*model)->forward(cache, std::span(ids).first(32), rows.view().row_range(0, 32), tap));
      ASSERT_TRUE(
          (*model)->forward(cache, std::span(ids).last(1), rows.view().row_range(32, 1), tap));
    }
    EXPECT_EQ(hidden[0], hidden[1]) << act;
    EXPECT_GT((*model)->online_seconds(), 0);
  }
}

}  // namespace
}  // namespace quern
