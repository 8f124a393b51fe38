// SPDX-License-Identifier: Apache-2.0
// Caches that evict or merge, in the bundled model: what every policy and every rule must keep.
#include <gtest/gtest.h>

#include <set>

#include "cache_run.h"
#include "kvcache/kv_file.h"

namespace quern {
namespace {

std::vector<std::string> policies() {
  std::vector<std::string> texts;
  for (const KvPolicyInfo& info : kv_policies()) {
    for (const std::string_view example : info.examples) {
      texts.push_back(fmt::format("kv(evict={})", example));
    }
  }
  texts.emplace_back("kv(k=int(4), v=int(4), rotate=true, evict=snapkv(60, prompt=130))");
  texts.emplace_back(
      "kv(k=int(2, per=channel), v=int(2), window=40, evict=snapkv(150, prompt=170))");
  return texts;
}

std::vector<std::string> policies_and_merges() {
  std::vector<std::string> texts = policies();
  for (const KvMergeInfo& info : kv_merges()) {
    for (const std::string_view example : info.examples) {
      texts.push_back(fmt::format("kv(merge={})", example));
    }
  }
  texts.emplace_back(
      "kv(merge=dmc(decision=linear)) @ layers[0:2] | q4 @ layers[2:3] | kv(evict=less(h2o(60)))");
  return texts;
}

class PartialCache : public test::CacheRun, public ::testing::WithParamInterface<std::string> {};

class Eviction : public PartialCache {};

TEST_P(PartialCache, HowATextIsCutDoesNotShow) {
  const Matrix<float> whole = run(GetParam(), kLength);
  EXPECT_EQ(run(GetParam(), 1), whole);
  EXPECT_EQ(run(GetParam(), 97), whole);
}

TEST_P(PartialCache, SequencesTogetherAreSequencesAlone) {
  std::vector<KvCache> together, alone;
  for (const int64_t length : {60, 63, 129}) {
    for (std::vector<KvCache>* caches : {&together, &alone}) {
      caches->push_back(cache(GetParam()));
      run(caches->back(), length, length);
    }
  }
  const std::vector<Token> next = {7, 8, 9};
  for (int step = 0; step < 6; ++step) {
    Matrix<float> hidden(3, model_->desc().d_model), one(1, model_->desc().d_model);
    ASSERT_TRUE(model_->step_batch(together, next, hidden.view()));
    for (size_t s = 0; s < 3; ++s) {
      ASSERT_TRUE(model_->forward(alone[s], {&next[s], 1}, one.view()));
      for (int64_t j = 0; j < one.cols(); ++j) {
        ASSERT_EQ(hidden(static_cast<int64_t>(s), j), one(0, j)) << GetParam() << " " << s;
      }
    }
  }
}

TEST_P(PartialCache, ForksAndFilesGoOnAlike) {
  const Matrix<float> whole = run(GetParam(), kLength);
  for (const int64_t at : {50, 128, 190}) {
    KvCache one = cache(GetParam());
    run(one, at, 64);
    const test::ScratchFolder scratch;
    const std::string path = scratch / "cache";
    KvFileHead head{"m", {ids_.begin(), ids_.begin() + at}, {0}};
    ASSERT_TRUE(save_kv_file(path, one, head));
    KvCache loaded = cache(GetParam()), fork = one.fork();
    const auto file = KvFile::open(path);
    ASSERT_TRUE(file) << file.error().message;
    const Status status = file->load(loaded);
    ASSERT_TRUE(status) << GetParam() << " " << at << ": " << status.error().message;
    for (KvCache* cache : {&loaded, &fork, &one}) {
      const Matrix<float> rest = run(*cache, kLength, 50);
      for (int64_t i = 0; i < rest.rows() * rest.cols(); ++i) {
        ASSERT_EQ(rest.data()[i], whole.row(at)[i]) << GetParam() << " " << at;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Caches, PartialCache, ::testing::ValuesIn(policies_and_merges()));

TEST_P(Eviction, KeepsItsBudgetAndTheNewest) {
  KvCache kept = cache(GetParam());
  const KvPolicy& policy = *kept.layer(0).policy();
  int64_t decision = policy.next_decision(0);
  for (int64_t at = 0; at < kLength; ++at) {
    run(kept, at + 1, 1);
    if (at + 1 != decision) continue;
    decision = policy.next_decision(decision);
    for (size_t i = 0; i < kept.n_layers(); ++i) {
      const LayerKv& layer = kept.layer(i);
      EXPECT_EQ(layer.n_slots(), std::min(at + 1, policy.budget()));
      for (const std::vector<int32_t>& positions : layer.slots().positions) {
        EXPECT_EQ(static_cast<int64_t>(positions.size()), layer.n_slots());
        EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
        EXPECT_EQ(std::set<int32_t>(positions.begin(), positions.end()).size(), positions.size());
        EXPECT_EQ(positions.back(), at);
      }
    }
  }
  EXPECT_NE(run(GetParam(), kLength), run("f16", kLength));
}

INSTANTIATE_TEST_SUITE_P(Policies, Eviction, ::testing::ValuesIn(policies()));

using Evictions = test::CacheRun;

TEST_F(Evictions, ABudgetBeyondTheTextIsThePlainCache) {
  const Matrix<float> plain = run("f16", kLength);
  for (const char* policy : {"streaming(window=296)", "h2o(300)", "h2o(300, window=1, every=7)",
                             "keyformer(300)", "snapkv(300, prompt=130)"}) {
    EXPECT_EQ(run(fmt::format("kv(evict={})", policy), 60), plain) << policy;
  }
  EXPECT_EQ(run("kv(k=int(4), v=int(4), rotate=true, evict=snapkv(300, prompt=1))", 60),
            run("q4", 60));
}

TEST_F(Evictions, WithoutHeavyOnesAllAreWindows) {
  const Matrix<float> window = run("kv(evict=streaming(sinks=0, window=70, every=16))", kLength);
  EXPECT_EQ(run("kv(evict=h2o(70, window=70, every=16))", kLength), window);
  EXPECT_EQ(run("kv(evict=keyformer(70, window=70, every=16))", kLength), window);
  EXPECT_EQ(run("kv(evict=streaming(sinks=0, window=70, every=16, positions=text))", kLength),
            window);
}

TEST_F(Evictions, KeyformerWithoutNoiseKeepsWhatH2oKeeps) {
  KvCache a = cache("kv(evict=h2o(80, window=20))");
  KvCache b = cache("kv(evict=keyformer(80, window=20, noise=none, tau=1))");
  EXPECT_EQ(run(a, kLength, 64), run(b, kLength, 64));
  for (size_t i = 0; i < a.n_layers(); ++i) {
    EXPECT_EQ(a.layer(i).slots().positions, b.layer(i).slots().positions);
  }
  KvCache c = cache("kv(evict=keyformer(80, window=20, seed=1))");
  KvCache d = cache("kv(evict=keyformer(80, window=20, seed=2))");
  EXPECT_NE(run(c, kLength, 64), run(d, kLength, 64));
}

// Nothing dropped: every query row gave its head a score of one in all.
TEST_F(Evictions, ScoresAreTheQueriesTheySaw) {
  for (const char* policy : {"h2o(300)", "keyformer(300, tau=3)"}) {
    KvCache kept = cache(fmt::format("kv(evict={})", policy));
    run(kept, 200, 64);
    const AttentionDesc& a = model_->desc().layers[0].attention;
    for (size_t i = 0; i < kept.n_layers(); ++i) {
      for (const std::vector<float>& scores : kept.layer(i).slots().scores) {
        double sum = 0;
        for (const float score : scores) sum += score;
        EXPECT_NEAR(sum, 200.0 * static_cast<double>(a.n_heads / a.n_kv_heads), 1e-2) << policy;
      }
    }
  }
}

// In the first layer a key depends on its token and position alone. Behind an eviction the key of
// sink s is that of position s + dropped: its distance to the window is the one in the cache.
TEST_F(Evictions, SinksMoveWithTheWindow) {
  KvCache kept = cache("kv(evict=streaming(sinks=3, window=40))");
  run(kept, 192, 192);
  const LayerKv& layer = kept.layer(0);
  const int64_t dropped = 192 - 43, d = model_->desc().layers[0].attention.d_head;
  ASSERT_EQ(layer.slots().n_dropped, dropped);
  std::vector<Token> moved = ids_;
  std::copy_n(ids_.begin(), 3, moved.begin() + dropped);
  std::swap(ids_, moved);
  KvCache plain = cache("f16");
  run(plain, 192, 192);
  AlignedVector<float> a(static_cast<size_t>(kKeyBlock * d)), b(a.size());
  const LayerKv::Exact mine(layer, 0), other(plain.layer(0), 0);
  const float* x = floats_of(mine.keys(0, {}), kKeyBlock * d, a.data());
  for (int64_t s = 0; s < 3; ++s) {
    const int64_t at = s + dropped;
    const float* y = floats_of(other.keys(at / kKeyBlock, {}), kKeyBlock * d, b.data());
    for (int64_t c = 0; c < d; ++c) {
      ASSERT_EQ(x[c * kKeyBlock + s], y[c * kKeyBlock + at % kKeyBlock]) << s << " " << c;
    }
  }
}

// The prompt ends where the caller says, or at a number: the same.
TEST_F(Evictions, SnapsAtTheEndOfThePrompt) {
  KvCache told = cache("kv(evict=snapkv(60))"), knows = cache("kv(evict=snapkv(60, prompt=130))");
  run(told, 130, 50);
  EXPECT_EQ(told.layer(0).n_slots(), 130);
  model_->end_prompt(told);
  run(knows, 130, 130);
  EXPECT_EQ(told.layer(0).n_slots(), 60);
  EXPECT_EQ(run(told, kLength, 7), run(knows, kLength, 64));
  model_->end_prompt(told);  // once only
  EXPECT_EQ(told.layer(0).n_slots(), 60 + kLength - 130);
}

TEST_F(Evictions, BytesAreThoseOfTheBudget) {
  KvCache kept = cache("kv(evict=h2o(60))"), plain = cache("f16"),
          snapped = cache("kv(evict=snapkv(60))");
  for (KvCache* cache : {&kept, &plain, &snapped}) run(*cache, kLength, 64);
  model_->end_prompt(snapped);
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const auto heads = static_cast<int64_t>(kept.n_layers()) * a.n_kv_heads;
  const int64_t block = heads * 2 * kKeyBlock * a.d_head * 2;
  const auto bytes_of = [](const KvCache& cache) { return static_cast<int64_t>(cache.n_bytes()); };
  EXPECT_EQ(bytes_of(plain), 4 * block);
  // Halves, and a position and a score of each slot, whose lists double as they grow.
  for (const auto& [cache, n] : {std::pair{&kept, 2}, {&snapped, 1}}) {
    EXPECT_GE(bytes_of(*cache), n * block + heads * 8 * 60);
    EXPECT_LE(bytes_of(*cache), n * block + heads * 8 * 2 * kLength);
  }
}

TEST_F(Evictions, AStreamMayOutgrowTheContext) {
  const int64_t context = model_->desc().n_context;
  const auto can = [&](const char* text) {
    return model_->make_cache(context + 100, *KvRecipe::parse(text)).has_value();
  };
  EXPECT_TRUE(can("kv(evict=streaming(window=60))"));
  EXPECT_FALSE(can("kv(evict=streaming(window=60, positions=text))"));
  EXPECT_FALSE(can("kv(evict=h2o(60))"));
  EXPECT_FALSE(can(fmt::format("kv(evict=streaming(window={}))", context).c_str()));
}

TEST(Policies, WrongTextsSayWhatIsValid) {
  for (const auto& [text, mention] : std::vector<std::pair<const char*, const char*>>{
           {"kv(evict=lru(4))", "streaming, h2o, snapkv, keyformer"},
           {"kv(evict=h2o)", "budget"},
           {"kv(evict=h2o(4, window=5))", "a window of 5 in a budget of 4"},
           {"kv(evict=snapkv(64, pool=4))", "odd"},
           {"kv(k=int(4), v=int(4), evict=h2o(4))", "a page of codes cannot lose one"},
           {"kv(k=int(4), v=int(4), evict=streaming(window=8))", "from the middle of pages"},
           {"kv(window=5, evict=h2o(4))", "there is no k"},
           {"kv()", "neither"}}) {
    const auto recipe = KvRecipe::parse(text);
    ASSERT_FALSE(recipe) << text;
    EXPECT_NE(recipe.error().message.find(mention), std::string::npos) << recipe.error().message;
  }
  for (const std::string& text : policies()) {
    EXPECT_EQ(KvRecipe::parse(KvRecipe::parse(text)->text)->text, KvRecipe::parse(text)->text);
  }
}

}  // namespace
}  // namespace quern
