// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "transforms/layer_view_testing.h"

namespace quern {
namespace {

using testing::FakeLayer;
using testing::fitted;

constexpr Site kAll[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};

float abs_max(const Matrix<float>& rows) {
  float most = 0;
  for (int64_t i = 0; i < rows.rows() * rows.cols(); ++i) {
    most = std::max(most, std::abs(rows.data()[i]));
  }
  return most;
}

Matrix<float> through(const Chain& chain, Matrix<float> rows) {
  chain.apply(rows.data(), rows.rows() * rows.cols());
  return rows;
}

std::vector<std::string> names(const Chain& chain) {
  std::vector<std::string> list;
  for (const OperatorPtr& op : chain.operators()) list.push_back(op->to_json()["op"]);
  return list;
}

TEST(Duquant, EverySiteGetsARotationAPermutationAndARotation) {
  for (const bool with_experts : {false, true}) {
    const FakeLayer layer(with_experts ? 3 : 0, 2);
    const BasisChange basis = fitted(layer, "duquant(block=8, steps=16)");
    for (const Site site : kAll) {
      const Chain& chain = basis.at(site, 0);
      EXPECT_EQ(names(chain), (std::vector<std::string>{"dense", "permutation", "dense"}));
      for (const OperatorPtr& op : chain.operators()) {
        if (op->kind() != OperatorKind::kPermutation) {
          EXPECT_EQ(op->tensors()[0].dtype, DType::kF16);
        }
        EXPECT_EQ(op->size(), op->kind() == OperatorKind::kPermutation
                                  ? static_cast<int64_t>(layer.statistics(site)->abs_max.size())
                                  : 8);
      }
    }
  }
}

// Its matrices are orthogonal but for their rounding to halves: 64 entries that are 2^-12 off at
// most change a length by 2^-9 of it, two matrices by twice that.
TEST(Duquant, KeepsTheLengthOfRows) {
  const FakeLayer layer(0, 4);
  const BasisChange basis = fitted(layer, "duquant(block=8, steps=16)");
  for (const Site site : kAll) {
    const Matrix<float>& rows = layer.statistics(site)->rows;
    const Matrix<float> turned = through(basis.at(site, 0), rows);
    for (int64_t i = 0; i < rows.rows(); ++i) {
      double before = 0, after = 0;
      for (int64_t j = 0; j < rows.cols(); ++j) {
        before += static_cast<double>(rows(i, j)) * rows(i, j);
        after += static_cast<double>(turned(i, j)) * turned(i, j);
      }
      EXPECT_NEAR(std::sqrt(after / before), 1, 4e-3);
    }
  }
}

TEST(Duquant, EachPartLowersTheLargestValueOfTheRows) {
  const FakeLayer layer(0, 4);
  for (const char* side : {"right", "left"}) {
    const BasisChange one =
        fitted(layer, fmt::format("duquant(block=8, steps=64, permutations=0, random={})", side));
    const BasisChange two =
        fitted(layer, fmt::format("duquant(block=8, steps=64, random={})", side));
    for (const Site site : kAll) {
      const Matrix<float>& rows = layer.statistics(site)->rows;
      EXPECT_EQ(names(one.at(site, 0)), (std::vector<std::string>{"dense"}));
      const float after_one = abs_max(through(one.at(site, 0), rows));
      EXPECT_LT(after_one, abs_max(rows));
      EXPECT_LT(abs_max(through(two.at(site, 0), rows)), after_one);
    }
  }
}

TEST(Duquant, ASeedGivesTheSameOperatorsAndASiteItsOwn) {
  const FakeLayer layer(0, 4);
  const BasisChange a = fitted(layer, "duquant(block=8, steps=4)");
  const BasisChange b = fitted(layer, "duquant(block=8, steps=4)");
  const auto matrix = [](const BasisChange& basis, Site site) {
    return basis.at(site, 0).operators()[0]->tensors()[0].bytes;
  };
  for (const Site site : kAll) EXPECT_EQ(matrix(a, site), matrix(b, site));
  EXPECT_NE(matrix(a, Site::kAttnIn), matrix(a, Site::kMlpIn));
}

TEST(Duquant, WhereNoTokenCameNothingIsRotated) {
  FakeLayer layer(3, 4);
  layer.drop_statistics(Site::kFfn);
  const BasisChange basis = fitted(layer, "duquant(block=8, steps=2)");
  EXPECT_TRUE(basis.at(Site::kFfn, 0).empty());
  EXPECT_FALSE(basis.at(Site::kMlpIn, 0).empty());
}

TEST(Duquant, WidthsThatItCannotDivideGetSmallerBlocksOrAReason) {
  const auto plan = [](ModelDesc model, const std::string& text, std::vector<std::string>& notes) {
    const auto call = spec::parse_call(text);
    const TransformInfo* info = find_transform("duquant");
    BasisChange basis;
    return (*info->make(*spec::Params::bind(*call, info->params)))->plan(model, 0, basis, notes);
  };
  ModelDesc model = FakeLayer(0, 4).model();
  std::vector<std::string> notes;
  ASSERT_TRUE(plan(model, "duquant(block=32)", notes));
  ASSERT_EQ(notes.size(), 1u);  // 48 = 3 * 16
  EXPECT_NE(notes[0].find("blocks of 16"), std::string::npos) << notes[0];
  notes.clear();
  model.layers[0].mlp.d_ffn = 4 * 11;
  ASSERT_TRUE(plan(model, "duquant(block=32)", notes));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("left as it is"), std::string::npos) << notes[0];
  EXPECT_FALSE(plan(model, "duquant(block=32, sites=ffn)", notes));
  // Layers of several widths each get what they can.
  model.layers.push_back(model.layers[0]);
  model.layers[1].mlp.d_ffn = 24;
  notes.clear();
  ASSERT_TRUE(plan(model, "duquant(block=32, sites=ffn)", notes));
  EXPECT_EQ(notes.size(), 2u);
  ASSERT_TRUE(plan(model, "duquant(block=44, sites=ffn)", notes));
}

}  // namespace
}  // namespace quern
