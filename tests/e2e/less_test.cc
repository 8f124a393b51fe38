// SPDX-License-Identifier: Apache-2.0
// LESS in the bundled model: policies whose dropped tokens are absorbed. What every policy must
// keep is in eviction_test.cc.
#include <gtest/gtest.h>

#include <set>

#include "cache_reference.h"
#include "cache_run.h"

namespace quern {
namespace {

using Less = test::CacheRun;

TEST_F(Less, WithZeroKernelsItIsThePolicy) {
  const auto text_of = [](std::string_view policy) { return fmt::format("kv(evict={})", policy); };
  const std::string_view policies[] = {"h2o(60)", "streaming(window=60)", "snapkv(60, prompt=130)"};
  for (const std::string_view policy : policies) {
    EXPECT_NE(run(text_of(fmt::format("less({})", policy)), 64), run(text_of(policy), 64));
  }
  retrain([](size_t layer, const KvHeads& heads, KvTableSet& tables) {
    test::put_trained(layer, heads, tables);
    const Shape shape = (*tables.find(layer, "less.key_scale", 2))->shape;
    tables.put(layer, "less.key_scale", shape, test::gaussian_table(shape, 0, 1));
  });
  for (const std::string_view policy : policies) {
    EXPECT_EQ(run(text_of(fmt::format("less({})", policy)), 64), run(text_of(policy), 64))
        << policy;
  }
}

TEST_F(Less, ABudgetBeyondTheTextIsThePlainCache) {
  EXPECT_EQ(run("kv(evict=less(h2o(300)))", 60), run("f16", 60));
}

// The policy and its coded pages, and sums of what it dropped from them.
TEST_F(Less, AbsorbsBesideCodes) {
  const char* text = "kv(k=int(4), v=int(4), evict=less(snapkv(60, prompt=130)))";
  const Matrix<float> whole = run(text, kLength);
  EXPECT_EQ(run(text, 7), whole);
  EXPECT_NE(whole, run("kv(k=int(4), v=int(4), evict=snapkv(60, prompt=130))", 64));
}

// Keys and values of the first layer do not depend on the cache: a token is kept or it is in the
// sums, whatever the order.
TEST_F(Less, SumsAreOverWhatIsNotKept) {
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const test::HeadRecord heads = test::record_heads(*model_, cache("f16"), ids_);
  const KvHeads shape{a.n_heads, a.n_kv_heads, a.d_head};
  const auto maps = *KvFeatureMaps::load(*KvTableSet::open(kv_tables_path(path_)), 0, shape);
  KvCache kept = cache("kv(evict=less(h2o(60)))");
  run(kept, kLength, 64);
  const LayerKv& layer = kept.layer(0);
  const int64_t n = maps->n_features();
  for (int64_t head = 0; head < a.n_kv_heads; ++head) {
    const std::vector<int32_t>& positions = layer.slots().positions[static_cast<size_t>(head)];
    const std::set<int64_t> is_kept(positions.begin(), positions.end());
    ASSERT_LT(is_kept.size(), 130u);
    test::Vector weights(static_cast<size_t>(n));
    std::vector<test::Vector> values(static_cast<size_t>(n),
                                     test::Vector(static_cast<size_t>(a.d_head)));
    for (int64_t p = kLength - 1; p >= 0; --p) {
      if (is_kept.count(p) > 0) continue;
      const test::Vector turned =
          test::turned(a.rope, test::head_of(heads.k, p, head, a.d_head), p);
      Matrix<float> key(1, a.d_head), psi(1, n);
      for (int64_t c = 0; c < a.d_head; ++c) {
        key(0, c) = static_cast<float>(turned[static_cast<size_t>(c)]);
      }
      maps->psi(head, key.view(), psi.data());
      for (int64_t r = 0; r < n; ++r) {
        weights[static_cast<size_t>(r)] += psi(0, r);
        test::add(psi(0, r), test::head_of(heads.v, p, head, a.d_head),
                  values[static_cast<size_t>(r)]);
      }
    }
    for (int64_t r = 0; r < n; ++r) {
      // Keys and values are halves there.
      const auto at = static_cast<size_t>(head * n + r);
      const double weight = weights[static_cast<size_t>(r)];
      EXPECT_NEAR(layer.absorbed().weights()[at], weight, 2e-3 * weight + 1e-6);
      for (int64_t c = 0; c < a.d_head; ++c) {
        const float got =
            layer.absorbed().values()[at * static_cast<size_t>(a.d_head) + static_cast<size_t>(c)];
        EXPECT_NEAR(got, values[static_cast<size_t>(r)][static_cast<size_t>(c)],
                    2e-3 * weight + 1e-6);
      }
    }
  }
}

// A window drops what lies before it behind multiples of 16: the quotient of sums in double, with
// exponentials of what is there and products of maps of what is not.
TEST_F(Less, AttentionIsTheQuotientOfSums) {
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const int64_t d = a.d_head, group = a.n_heads / a.n_kv_heads;
  const char* text = "kv(evict=less(streaming(sinks=0, window=40, every=16, positions=text)))";
  const test::HeadRecord heads = test::record_heads(*model_, cache(text), ids_);
  const auto maps = *KvFeatureMaps::load(*KvTableSet::open(kv_tables_path(path_)), 0,
                                         {a.n_heads, a.n_kv_heads, d});
  const auto features = [&](bool is_query, int64_t head, const test::Vector& x) {
    Matrix<float> row(1, d), y(1, maps->n_features());
    std::copy(x.begin(), x.end(), row.data());
    is_query ? maps->phi(head, row.view(), y.data()) : maps->psi(head, row.view(), y.data());
    return test::Vector(y.data(), y.data() + y.cols());
  };
  std::vector<test::Vector> z(kLength, test::Vector(static_cast<size_t>(a.n_heads * d)));
  double absorbed_share = 0;
  for (int64_t head = 0; head < a.n_heads; ++head) {
    std::vector<test::Vector> keys, psi;
    for (int64_t p = 0; p < kLength; ++p) {
      keys.push_back(test::turned(a.rope, test::head_of(heads.k, p, head / group, d), p));
      psi.push_back(features(false, head / group, keys.back()));
    }
    for (int64_t i = 0; i < kLength; ++i) {
      const test::Vector q = test::turned(a.rope, test::head_of(heads.q, i, head, d), i);
      const test::Vector phi = features(true, head, q);
      const int64_t first = std::max<int64_t>(0, i / 16 * 16 - 40);
      test::Vector sum(static_cast<size_t>(d));
      double total = 0, dropped = 0;
      for (int64_t p = 0; p <= i; ++p) {
        const auto at = static_cast<size_t>(p);
        const double weight =
            p < first ? test::dot(phi, psi[at]) : std::exp(a.scale * test::dot(q, keys[at]));
        test::add(weight, test::head_of(heads.v, p, head / group, d), sum);
        total += weight;
        if (p < first) dropped += weight;
      }
      absorbed_share = std::max(absorbed_share, dropped / total);
      for (int64_t c = 0; c < d; ++c) {
        z[static_cast<size_t>(i)][static_cast<size_t>(head * d + c)] =
            sum[static_cast<size_t>(c)] / total;
      }
    }
  }
  EXPECT_GT(absorbed_share, .1);  // else this would show nothing
  EXPECT_LT(test::relative_error(heads.z, z), 4e-3);
}

TEST_F(Less, TakesTheRoomOfItsSums) {
  KvCache with = cache("kv(evict=less(h2o(60)))"), without = cache("kv(evict=h2o(60))");
  run(with, kLength, 64);
  run(without, kLength, 64);
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const auto n_sums = static_cast<int64_t>(with.n_layers()) * a.n_kv_heads * 12 * (a.d_head + 1);
  EXPECT_EQ(static_cast<int64_t>(with.n_bytes() - without.n_bytes()), 4 * n_sums);
}

TEST_F(Less, GoesBackToTheBeginningOnly) {
  KvCache kept = cache("kv(evict=less(h2o(60)))");
  const Matrix<float> whole = run(kept, kLength, 64);
  EXPECT_FALSE(kept.truncate(kLength - 1));
  ASSERT_TRUE(kept.truncate(0));
  EXPECT_EQ(run(kept, kLength, 64), whole);
}

TEST_F(Less, WrongTextsAndFilesSayWhatIsExpected) {
  expect_problem("kv(evict=less)", "policy");
  expect_problem("kv(evict=less(lru(4)))", "no kv policy 'lru'; expected one of streaming, ");
  expect_problem("kv(evict=less(less(h2o(4))))", "absorbed already");
  expect_problem("kv(k=int(4), v=int(4), evict=less(h2o(4)))", "a page of codes cannot lose one");
  expect_problem("kv(k=int(4), v=int(4), rotate=true, evict=less(snapkv(40)))", "not rotated");
  // Maps of what is far away have not been trained: no endless stream.
  const auto stream = KvRecipe::parse("kv(evict=less(streaming(window=60)))");
  EXPECT_FALSE(model_->make_cache(model_->desc().n_context + 1, *stream));
  retrain([](size_t layer, const KvHeads& heads, KvTableSet& tables) {
    if (layer == 0) test::put_trained(layer, heads, tables);
  });
  expect_problem("kv(evict=less(h2o(4)))",
                 "no 'layers.1.less.query_in' among the tables of caches");
  KvTableSet foreign;
  foreign.model = "another";
  ASSERT_TRUE(foreign.save(kv_tables_path(path_)));
  model_ = *Model::open(path_, Activations::kExact);
  expect_problem("kv(evict=less(h2o(4)))", "made of another model");
  std::filesystem::remove(kv_tables_path(path_));
  expect_problem("kv(evict=less(h2o(4)))", "training makes it");
}

}  // namespace
}  // namespace quern
