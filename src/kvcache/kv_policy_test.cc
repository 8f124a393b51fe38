// SPDX-License-Identifier: Apache-2.0
// Policies of eviction by themselves: what they make of given weights. In a model:
// tests/e2e/eviction_test.cc.
#include "kvcache/kv_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/random.h"

namespace quern {
namespace {

std::unique_ptr<KvPolicy> policy_of(std::string_view text) {
  auto policy = make_kv_policy(*spec::parse_call(text));
  EXPECT_TRUE(policy) << text;
  return *std::move(policy);
}

std::vector<int32_t> kept(std::string_view text, const std::vector<float>& scores) {
  std::vector<int32_t> keep = {77};  // what was there before
  policy_of(text)->choose(scores, keep);
  return keep;
}

// Random softmax rows of n_q queries and n_heads heads over n slots.
struct Rows {
  Rows(int64_t n_q, int64_t n_heads, int64_t n) : weights(static_cast<size_t>(n_q * n_heads * n)) {
    Random random(3);
    for (int64_t i = 0; i < n_q * n_heads; ++i) {
      float* row = weights.data() + i * n;
      float sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        sum += row[j] = static_cast<float>(std::exp(random.gaussian()));
      }
      for (int64_t j = 0; j < n; ++j) row[j] /= sum;
    }
    positions.resize(static_cast<size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    w.weights = weights.data();
    w.n_q = n_q;
    w.n_heads = n_heads;
    w.n_slots = n;
    w.position = n;
    w.positions = positions;
  }
  std::vector<float> weights;
  std::vector<int32_t> positions;
  KvWeights w;
};

std::vector<float> observed(const KvPolicy& policy, const KvWeights& w) {
  std::vector<float> scores(static_cast<size_t>(w.n_slots));
  policy.observe(w, scores.data());
  return scores;
}

TEST(KvPolicies, EveryExampleKeepsItsBudgetInOrder) {
  Random random(1);
  for (const KvPolicyInfo& info : kv_policies()) {
    for (const std::string_view text : info.examples) {
      const auto policy = policy_of(text);
      EXPECT_EQ(policy_of(policy->spec())->spec(), policy->spec());
      for (const int64_t n : {policy->budget(), policy->budget() + 1, policy->budget() + 77}) {
        std::vector<float> scores(static_cast<size_t>(n));
        for (float& score : scores) score = static_cast<float>(random.below(9));  // with ties
        const std::vector<int32_t> keep = kept(text, scores);
        ASSERT_EQ(static_cast<int64_t>(keep.size()), policy->budget()) << text;
        EXPECT_EQ(keep.back(), n - 1) << text;
        for (size_t i = 1; i < keep.size(); ++i) EXPECT_LT(keep[i - 1], keep[i]) << text;
      }
      for (int64_t p = 0; p < 500; ++p) {
        const int64_t next = policy->next_decision(p);
        EXPECT_GT(next, p);
        EXPECT_LE(policy->next_decision(0), next);
      }
    }
  }
}

TEST(KvPolicies, NumbersThatAreNoneGoFirst) {
  EXPECT_EQ(kept("h2o(3, window=1)", {NAN, 1, NAN, 3, 0}), (std::vector<int32_t>{1, 3, 4}));
}

TEST(Streaming, KeepsBothEnds) {
  EXPECT_EQ(kept("streaming(sinks=2, window=3)", std::vector<float>(8)),
            (std::vector<int32_t>{0, 1, 5, 6, 7}));
  EXPECT_EQ(policy_of("streaming(sinks=2, window=3)")->n_moving(), 2);
  EXPECT_EQ(policy_of("streaming(sinks=2, window=3, positions=text)")->n_moving(), 0);
}

TEST(H2o, KeepsTheNewestAndTheHeaviest) {
  EXPECT_EQ(kept("h2o(4)", {5, 1, 7, 3, 6, 9, 0, 0}), (std::vector<int32_t>{2, 5, 6, 7}));
  EXPECT_EQ(kept("h2o(4, window=1)", {5, 1, 7, 3, 6, 9, 0, 0}), (std::vector<int32_t>{2, 4, 5, 7}));
  EXPECT_EQ(kept("h2o(3, window=1)", {2, 2, 2, 2, 2}), (std::vector<int32_t>{0, 1, 4}));  // older
}

// Rows one after the other, or together: the same sums in the same order.
TEST(H2o, ScoresAreSumsOfColumns) {
  for (const char* text : {"h2o(9)", "keyformer(9)"}) {
    const auto policy = policy_of(text);
    const Rows rows(7, 3, 33);
    const std::vector<float> together = observed(*policy, rows.w);
    std::vector<float> apart(together.size());
    for (int64_t i = 0; i < 7; ++i) {
      KvWeights one = rows.w;
      one.weights += i * 3 * 33;
      one.n_q = 1;
      one.position += i;
      policy->observe(one, apart.data());
    }
    EXPECT_EQ(apart, together) << text;
    EXPECT_NEAR(std::accumulate(together.begin(), together.end(), 0.0), 21, 1e-4) << text;
  }
  const Rows rows(7, 3, 33);
  float sum = 0;
  for (int64_t i = 0; i < 21; ++i) sum += rows.weights[static_cast<size_t>(i * 33 + 5)];
  EXPECT_EQ(observed(*policy_of("h2o(9)"), rows.w)[5], sum);
}

TEST(Keyformer, WithoutNoiseAtOneDegreeIsH2o) {
  const Rows rows(7, 3, 33);
  const auto a = observed(*policy_of("h2o(9)"), rows.w);
  const auto b = observed(*policy_of("keyformer(9, noise=none, tau=1)"), rows.w);
  for (size_t j = 0; j < a.size(); ++j) EXPECT_NEAR(a[j], b[j], 21 * 1e-6);
}

TEST(Keyformer, NoiseDependsOnSeedLayerHeadAndPositionsOnly) {
  const Rows rows(1, 1, 33);
  const auto with = [&](const char* text, int64_t layer, int64_t head, int64_t position) {
    KvWeights w = rows.w;
    w.layer = layer;
    w.first_head = head;
    w.position = position;
    return observed(*policy_of(text), w);
  };
  const std::vector<float> scores = with("keyformer(9)", 1, 2, 40);
  EXPECT_EQ(with("keyformer(9)", 1, 2, 40), scores);
  EXPECT_NE(with("keyformer(9, seed=1)", 1, 2, 40), scores);
  EXPECT_NE(with("keyformer(9)", 2, 2, 40), scores);
  EXPECT_NE(with("keyformer(9)", 1, 1, 40), scores);
  EXPECT_NE(with("keyformer(9)", 1, 2, 41), scores);
}

// E softmax(x + g)_j for Gumbel g has no short form, but argmax(x + g) has: p_j (Gumbel-max). At a
// temperature near zero the scoring softmax is that choice.
TEST(Keyformer, TheNoiseIsGumbel) {
  const Rows rows(1, 1, 5);
  constexpr int kDraws = 20000;
  std::vector<float> scores(5);
  for (int i = 0; i < kDraws; ++i) {
    KvWeights w = rows.w;
    w.position = i;
    // Read the choice off the softmax at temperature one: noise does not move the largest.
    std::vector<float> one(5);
    policy_of("keyformer(9, tau=1)")->observe(w, one.data());
    scores[static_cast<size_t>(std::max_element(one.begin(), one.end()) - one.begin())] += 1;
  }
  for (size_t j = 0; j < 5; ++j) {
    const double p = rows.weights[j], deviation = std::sqrt(p * (1 - p) / kDraws);
    EXPECT_NEAR(scores[j] / kDraws, p, 4.5 * deviation) << j;
  }
}

// Hot enough, every token gets the same from a query: age alone counts.
TEST(Keyformer, InfiniteHeatKeepsTheOldest) {
  const auto policy = policy_of("keyformer(6, window=2, tau=1000, steps=1)");
  std::vector<float> scores(12);
  for (int64_t n = 8; n <= 12; ++n) {
    const Rows rows(1, 1, n);
    policy->observe(rows.w, scores.data());
  }
  const std::vector<int32_t> keep = kept("keyformer(6, window=2)", scores);
  for (size_t i = 0; i < 4; ++i) EXPECT_LT(keep[i], 8);
}

TEST(Snapkv, NeighboursOfVotesStay) {
  const std::vector<float> votes = {0, 0, 0, 9, 0, 0, 0, 8, 0, 5, 5};
  // The last two are the window. Without pooling the best three, of equal ones the older.
  EXPECT_EQ(kept("snapkv(5, window=2, pool=1)", votes), (std::vector<int32_t>{0, 3, 7, 9, 10}));
  EXPECT_EQ(kept("snapkv(5, window=2, pool=3)", votes), (std::vector<int32_t>{2, 3, 4, 9, 10}));
  EXPECT_EQ(kept("snapkv(5, window=2, pool=3, by=mean)", votes),
            (std::vector<int32_t>{2, 3, 4, 9, 10}));
  EXPECT_EQ(kept("snapkv(4, window=2, pool=5)", {3, 0, 0, 2, 2, 2, 0, 0}),
            (std::vector<int32_t>{0, 1, 6, 7}));
  EXPECT_EQ(kept("snapkv(4, window=2, pool=5, by=mean)", {3, 0, 0, 2, 2, 2, 0, 0}),
            (std::vector<int32_t>{2, 3, 6, 7}));
}

TEST(Snapkv, DecidesOnce) {
  EXPECT_EQ(policy_of("snapkv(9, window=2)")->next_decision(0), KvPolicy::kNever);
  const auto policy = policy_of("snapkv(9, window=2, prompt=50)");
  EXPECT_EQ(policy->next_decision(0), 50);
  EXPECT_EQ(policy->next_decision(49), 50);
  EXPECT_EQ(policy->next_decision(50), KvPolicy::kNever);
}

}  // namespace
}  // namespace quern
