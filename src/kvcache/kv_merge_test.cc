// SPDX-License-Identifier: Apache-2.0
// Rules of merging and the means of slots by themselves. In a model: tests/e2e/merging_test.cc.
#include "kvcache/kv_merge.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvcache/kv_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims = 7;

std::unique_ptr<KvMerge> merge_of(std::string_view text) {
  auto merge = make_kv_merge(*spec::parse_call(text));
  EXPECT_TRUE(merge) << text;
  return *std::move(merge);
}

// The means of every token's slot with it, from tokens with (weight, key, value).
Matrix<float> means(int64_t window, const Matrix<float>& tokens, const std::vector<bool>& starts) {
  KvOpenSlot open(window, kDims);
  Matrix<float> x = tokens;
  for (int64_t i = 0; i < x.rows(); ++i) {
    float* row = x.row(i);
    open.add(starts[static_cast<size_t>(i)], row[0], row + 1, row + 1 + kDims);
  }
  return x;
}

TEST(KvOpenSlot, IsTheWeightedMeanOfItsNewestTokens) {
  constexpr int64_t kTokens = 60;
  Matrix<float> tokens = gaussian_rows(kTokens, 1 + 2 * kDims, 1);
  Random random(2);
  std::vector<bool> starts = {true};
  for (int64_t i = 0; i < kTokens; ++i) tokens(i, 0) = std::exp(tokens(i, 0));
  for (int64_t i = 1; i < kTokens; ++i) starts.push_back(random.below(9) == 0);
  for (const int64_t window : {0, 1, 2, 3, 12, 100}) {
    const Matrix<float> got = means(window, tokens, starts);
    int64_t first = 0;
    for (int64_t i = 0; i < kTokens; ++i) {
      if (starts[static_cast<size_t>(i)]) first = i;
      const int64_t begin = window == 0 ? first : std::max(first, i + 1 - window);
      for (int64_t c = 1; c <= 2 * kDims; ++c) {
        double sum = 0, total = 0;
        for (int64_t j = begin; j <= i; ++j) {
          sum += static_cast<double>(tokens(j, 0)) * tokens(j, c);
          total += tokens(j, 0);
        }
        EXPECT_NEAR(got(i, c), sum / total, 2e-6) << window << " " << i;
        if (begin == i) {
          EXPECT_EQ(got(i, c), tokens(i, c)) << window << " " << i;
        }
      }
    }
  }
}

// Means of a window come from the tokens themselves, those of a whole slot from one sum.
TEST(KvOpenSlot, DoesNotDriftAsTokensJoin) {
  constexpr int64_t kTokens = 100000;
  KvOpenSlot windowed(12, 1), whole(0, 1);
  Random random(3);
  double sum = 0, recent = 0;
  for (int64_t i = 0; i < kTokens; ++i) {
    const auto x = static_cast<float>(1000 + random.gaussian());
    float k = x, v = x;
    windowed.add(i == 0, .5, &k, &v);
    const float newest = k;
    k = v = x;
    whole.add(i == 0, .5, &k, &v);
    sum += x;
    if (i >= kTokens - 12) recent += x;
    if (i + 1 < kTokens) continue;
    EXPECT_NEAR(newest, recent / 12, 1000 * 12 * 0x1p-24);
    // Each step of the mean rounds by half an ulp of 1000, up or down.
    EXPECT_NEAR(k, sum / kTokens, 1000 * 0x1p-24 * std::sqrt(kTokens));
    EXPECT_EQ(k, v);
  }
}

TEST(KvOpenSlot, TakesTheRoomOfItsWindow) {
  KvOpenSlot open(5, kDims);
  std::vector<float> k(kDims), v(kDims);
  for (int i = 0; i < 100; ++i) open.add(i == 0, 1, k.data(), v.data());
  EXPECT_EQ(open.rows().size(), static_cast<size_t>(5 * open.width()));
  open.add(true, 1, k.data(), v.data());
  EXPECT_EQ(open.rows().size(), static_cast<size_t>(open.width()));
  EXPECT_GE(open.n_bytes(), 5 * static_cast<size_t>(open.width()) * 4);
}

TEST(KvMerges, ExamplesPrintAndParse) {
  for (const KvMergeInfo& info : kv_merges()) {
    for (const std::string_view text : info.examples) {
      EXPECT_EQ(merge_of(merge_of(text)->spec())->spec(), merge_of(text)->spec()) << text;
    }
  }
}

// Four query heads on two KV heads of 3 dimensions; the number that decides is the last or first.
TEST(Dmc, ReadsOneNumberOfEachHead) {
  const KvHeads heads{4, 2, 3};
  for (const bool is_first : {false, true}) {
    const int64_t at = is_first ? 0 : 2;
    const auto merge = merge_of(is_first ? "dmc(decision=first)" : "dmc");
    EXPECT_FALSE(merge->has_tables());
    Matrix<float> q(2, 12), k(2, 6);
    for (Matrix<float>* x : {&q, &k}) {
      for (int64_t i = 0; i < x->rows() * x->cols(); ++i) x->data()[i] = 100;
    }
    k(0, at) = 5;  // not above 5
    k(0, 3 + at) = 5.001f;
    k(1, at) = -5;
    k(1, 3 + at) = 50;
    const float o[2][4] = {{-4, -6, 0, 2}, {0, 0, -100, -100}};
    for (int64_t i = 0; i < 2; ++i) {
      for (int64_t h = 0; h < 4; ++h) q(i, 3 * h + at) = o[i][h];
    }
    uint8_t joins[4];
    float weights[4];
    merge->decide(heads, q.view(), k.view(), joins, weights);
    EXPECT_EQ((std::vector<int>{joins[0], joins[1], joins[2], joins[3]}),
              (std::vector<int>{0, 1, 0, 1}));
    EXPECT_EQ(weights[0], .5f + 0x1p-7f);  // the mean of -4 and -6, plus 5
    EXPECT_NEAR(weights[1], 1 / (1 + std::exp(-6.0)) + 0x1p-7, 1e-6);
    EXPECT_NEAR(weights[2], 1 / (1 + std::exp(-5.0)) + 0x1p-7, 1e-6);
    EXPECT_EQ(weights[3], 0x1p-7f);
    merge->clear(3, q.view());
    for (int64_t c = 0; c < 12; ++c) EXPECT_EQ(q(1, c), c % 3 == at ? 0 : 100);
  }
}

TEST(Dmc, ALinearFunctionDecidesWhereThereIsOne) {
  const KvHeads heads{2, 1, 2};
  KvTableSet tables;
  tables.put(4, "dmc.merge", {1, 3}, {1, -1, .5});
  tables.put(4, "dmc.weight", {2, 3}, {1, 0, 2, 0, 1, 4});
  const auto unbound = merge_of("dmc(decision=linear)");
  EXPECT_TRUE(unbound->has_tables());
  const auto merge = *unbound->with_tables(tables, 4, heads);
  Matrix<float> q(3, 4), k(3, 2);
  k(0, 1) = .5;   // 0 - .5 + .5 = 0
  k(1, 1) = .25;  // above 0
  k(2, 0) = -9;
  q(0, 0) = -2;  // -2 + 2 and -4 + 4
  q(0, 3) = -4;
  uint8_t joins[3];
  float weights[3];
  merge->decide(heads, q.view(), k.view(), joins, weights);
  EXPECT_EQ((std::vector<int>{joins[0], joins[1], joins[2]}), (std::vector<int>{0, 1, 0}));
  EXPECT_EQ(weights[0], .5f + 0x1p-7f);
  EXPECT_NEAR(weights[1], 1 / (1 + std::exp(-3.0)) + 0x1p-7, 1e-6);  // the mean of 2 and 4
  const Matrix<float> before = q;
  merge->clear(2, q.view());
  EXPECT_EQ(q, before);
}

TEST(Dmc, TablesOfOtherShapesAreRefused) {
  const KvHeads heads{4, 2, 6};
  const auto merge = merge_of("dmc(decision=linear)");
  EXPECT_TRUE(merge->with_tables(untrained_tables(heads), 0, heads));
  for (const auto& [name, shape] : std::vector<std::pair<const char*, Shape>>{
           {"dmc.merge", {2, 6}}, {"dmc.merge", {14}}, {"dmc.weight", {2, 7}}}) {
    KvTableSet tables = untrained_tables(heads);
    tables.put(0, name, shape, std::vector<float>(static_cast<size_t>(*element_count(shape))));
    const auto bound = merge->with_tables(tables, 0, heads);
    ASSERT_FALSE(bound) << name;
    EXPECT_NE(bound.error().message.find(name), std::string::npos) << bound.error().message;
  }
  EXPECT_FALSE(merge->with_tables({}, 0, heads));
}

}  // namespace
}  // namespace quern
