// SPDX-License-Identifier: Apache-2.0
// DMC in the bundled model: tokens that join the slot before them. What every cache that keeps
// only some of a text must keep is in eviction_test.cc.
#include <gtest/gtest.h>

#include "cache_reference.h"
#include "cache_run.h"

namespace quern {
namespace {

// Decisions that do not look at heads: logits of joining and of the weight.
auto constant_decisions(float joins, float weight) {
  return [=](size_t layer, const KvHeads& heads, KvTableSet& tables) {
    const auto put = [&](const char* name, int64_t n, float logit) {
      std::vector<float> values(static_cast<size_t>(n * (heads.d_head + 1)));
      for (int64_t i = 0; i < n; ++i) {
        values[static_cast<size_t>((i + 1) * (heads.d_head + 1) - 1)] = logit;
      }
      tables.put(layer, name, {n, heads.d_head + 1}, std::move(values));
    };
    put("dmc.merge", heads.n_kv_heads, joins);
    put("dmc.weight", heads.n_heads, weight);
  };
}

using Merging = test::CacheRun;

TEST_F(Merging, WithoutJoiningItIsThePlainCache) {
  retrain(constant_decisions(-1, .7f));
  const Matrix<float> plain = run("f16", 60);
  EXPECT_EQ(run("kv(merge=dmc(decision=linear))", 60), plain);
  EXPECT_EQ(run("kv(merge=dmc(decision=linear, window=0))", 1), plain);
}

// The same with norms of heads and windows of attention, which other models have.
TEST(MergingFixtures, WithoutJoiningItIsThePlainCache) {
  for (const char* name : {"qwen3", "gemma2", "gpt2", "mistral", "gpt_neox"}) {
    const test::ScratchFolder folder;
    const std::string path = folder / name;
    std::filesystem::copy(fmt::format(QUERN_SOURCE_DIR "/tests/data/fixtures/{}", name), path);
    std::vector<Token> ids;
    for (Token id = 0; id < 40; ++id) ids.push_back(1 + id * 7 % 20);
    const auto run = [&](const char* text, int64_t n) {
      const auto model = *Model::open(path, Activations::kExact);
      KvCache cache = *model->make_cache(40, *KvRecipe::parse(text));
      Matrix<float> hidden(40, model->desc().d_model);
      for (int64_t i = 0; i < 40; i += n) {
        const std::span<const Token> part(ids.data() + i, static_cast<size_t>(n));
        EXPECT_TRUE(model->forward(cache, part, hidden.view().row_range(i, n))) << name;
      }
      return hidden;
    };
    test::write_tables(path, constant_decisions(-1, .7f));
    const Matrix<float> plain = run("f16", 40);
    EXPECT_EQ(run("kv(merge=dmc(decision=linear))", 8), plain) << name;
    test::write_tables(path, test::put_trained);
    const Matrix<float> merged = run("kv(merge=dmc(decision=linear))", 40);
    EXPECT_NE(merged, plain) << name;
    EXPECT_EQ(run("kv(merge=dmc(decision=linear))", 1), merged) << name;
  }
}

// All in one: a slot that is the mean of all, or of the newest three.
TEST_F(Merging, WithNothingButJoiningThereIsOneMean) {
  retrain(constant_decisions(1, -.3f));
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const int64_t d = a.d_head;
  for (const int64_t window : {0, 3}) {
    const std::string text = fmt::format("kv(merge=dmc(window={}, decision=linear))", window);
    const test::HeadRecord heads = test::record_heads(*model_, cache(text), ids_);
    KvCache kept = cache(text);
    run(kept, kLength, 64);
    for (int64_t head = 0; head < a.n_kv_heads; ++head) {
      const KvMergedHead& merged = kept.layer(0).merged()[static_cast<size_t>(head)];
      ASSERT_EQ(merged.slots.n_slots(), 1);
      EXPECT_EQ(merged.positions, std::vector<int32_t>{kLength - 1});
      const int64_t n = window == 0 ? kLength : window;
      test::Vector key(static_cast<size_t>(d)), value = key;
      for (int64_t p = kLength - n; p < kLength; ++p) {
        test::add(1.0 / static_cast<double>(n), test::head_of(heads.k, p, head, d), key);
        test::add(1.0 / static_cast<double>(n), test::head_of(heads.v, p, head, d), value);
      }
      key = test::turned(a.rope, key, kLength - 1);
      AlignedVector<float> keys(static_cast<size_t>(kKeyBlock * d)), values(keys.size());
      const LayerKv::Exact exact(merged.slots, 0);
      const float* k = floats_of(exact.keys(0, {}), kKeyBlock * d, keys.data());
      const float* v = floats_of(exact.values(0, {}), kKeyBlock * d, values.data());
      for (int64_t c = 0; c < d; ++c) {
        const double expected_key = key[static_cast<size_t>(c)];
        const double expected_value = value[static_cast<size_t>(c)];
        EXPECT_NEAR(k[c * kKeyBlock], expected_key, 1e-3 * (1 + std::fabs(expected_key)));
        EXPECT_NEAR(v[c], expected_value, 1e-3 * (1 + std::fabs(expected_value)));
        // Every query saw the mean so far, all of its softmax: the newest sees this one.
        EXPECT_EQ(heads.z(kLength - 1, head * (a.n_heads / a.n_kv_heads) * d + c), v[c]);
      }
    }
  }
}

// The definition, token by token in double: decisions, slots from scratch for every query.
class DmcReference {
 public:
  DmcReference(const AttentionDesc& a, const test::HeadRecord& heads, const KvMerge& merge)
      : a_(a), q_(heads.q), k_(heads.k), v_(heads.v), window_(merge.window()) {
    const auto n = static_cast<size_t>(q_.rows() * a.n_kv_heads);
    joins_.resize(n);
    weights_.resize(n);
    merge.decide({a.n_heads, a.n_kv_heads, a.d_head}, q_.view(), k_.view(), joins_.data(),
                 weights_.data());
    std::fill_n(joins_.begin(), a.n_kv_heads, uint8_t{0});
    merge.clear(a.d_head, q_.view());
    merge.clear(a.d_head, k_.view());
    // Which number that is: after RoPE it must be zero again.
    for (int64_t c = 0; c < a.d_head; ++c) {
      bool is_cleared = true;
      for (int64_t i = 0; i < q_.rows(); ++i) is_cleared = is_cleared && q_(i, c) == 0;
      if (is_cleared) cleared_ = c;
    }
  }

  bool joins(int64_t i, int64_t head) const {
    return joins_[static_cast<size_t>(i * a_.n_kv_heads + head)] != 0;
  }
  int64_t cleared() const { return cleared_; }

  test::Vector attend(int64_t i, int64_t head) const {
    const int64_t kv_head = head / (a_.n_heads / a_.n_kv_heads), d = a_.d_head;
    const test::Vector q = placed(test::head_of(q_, i, head, d), i);
    test::Vector out(static_cast<size_t>(d));
    double total = 0;
    for (int64_t end = i; end >= 0;) {  // slots, the newest first
      int64_t first = end;
      while (joins(first, kv_head)) --first;
      test::Vector key(static_cast<size_t>(d)), value = key;
      double sum = 0;
      for (int64_t p = window_ == 0 ? first : std::max(first, end + 1 - window_); p <= end; ++p) {
        const double weight = weights_[static_cast<size_t>(p * a_.n_kv_heads + kv_head)];
        test::add(weight, test::head_of(k_, p, kv_head, d), key);
        test::add(weight, test::head_of(v_, p, kv_head, d), value);
        sum += weight;
      }
      for (test::Vector* x : {&key, &value}) {
        for (double& c : *x) c /= sum;
      }
      const double share = std::exp(a_.scale * test::dot(q, placed(key, end)));
      test::add(share, value, out);
      total += share;
      end = first - 1;
    }
    for (double& c : out) c /= total;
    return out;
  }

 private:
  test::Vector placed(test::Vector x, int64_t position) const {
    x = test::turned(a_.rope, std::move(x), position);
    if (cleared_ >= 0) x[static_cast<size_t>(cleared_)] = 0;
    return x;
  }

  const AttentionDesc& a_;
  Matrix<float> q_, k_, v_;
  int64_t window_, cleared_ = -1;
  std::vector<uint8_t> joins_;
  std::vector<float> weights_;
};

// Linear decisions by which half of the tokens of every head join: b is the median of -A k.
void put_balanced(const Matrix<float>& keys, const KvHeads& heads, KvTableSet& tables) {
  const int64_t d = heads.d_head;
  KvTable table = **tables.find(0, "dmc.merge", 2);
  for (int64_t head = 0; head < heads.n_kv_heads; ++head) {
    float* row = table.values.data() + head * (d + 1);
    test::Vector logits;
    for (int64_t i = 0; i < keys.rows(); ++i) {
      logits.push_back(test::dot({row, row + d}, test::head_of(keys, i, head, d)));
    }
    const auto middle = logits.begin() + keys.rows() / 2;
    std::nth_element(logits.begin(), middle, logits.end());
    row[d] = static_cast<float>(-*middle);
  }
  tables.put(0, "dmc.merge", table.shape, table.values);
}

TEST_F(Merging, AttentionIsTheDefinition) {
  const AttentionDesc a = model_->desc().layers[0].attention;
  ASSERT_LT(a.n_kv_heads, a.n_heads);  // heads that share keys
  const Matrix<float> keys = test::record_heads(*model_, cache("f16"), ids_).k;
  retrain([&](size_t layer, const KvHeads& heads, KvTableSet& tables) {
    test::put_trained(layer, heads, tables);
    if (layer == 0) put_balanced(keys, heads, tables);
  });
  const KvTableSet tables = *KvTableSet::open(kv_tables_path(path_));
  for (const char* rule :
       {"dmc(decision=linear)", "dmc(window=2, decision=linear)", "dmc(window=0, decision=linear)",
        "dmc(offset=0.5)", "dmc(window=0, decision=first, offset=0.5)"}) {
    const std::string text = fmt::format("kv(merge={})", rule);
    const test::HeadRecord heads = test::record_heads(*model_, cache(text), ids_);
    std::shared_ptr<const KvMerge> merge = KvRecipe::parse(text)->merge;
    if (merge->has_tables())
      merge = *merge->with_tables(tables, 0, {a.n_heads, a.n_kv_heads, a.d_head});
    const DmcReference reference(a, heads, *merge);
    EXPECT_EQ(reference.cleared(),
              merge->has_tables()
                  ? -1
                  : (std::string_view(rule).find("first") != std::string::npos ? 0 : a.d_head - 1));
    std::vector<test::Vector> z;
    for (int64_t i = 0; i < kLength; ++i) {
      test::Vector& row = z.emplace_back();
      for (int64_t head = 0; head < a.n_heads; ++head) {
        const test::Vector out = reference.attend(i, head);
        row.insert(row.end(), out.begin(), out.end());
      }
    }
    EXPECT_LT(test::relative_error(heads.z, z), 4e-3) << rule;
    // Slots have the positions of their newest tokens.
    KvCache kept = cache(text);
    run(kept, kLength, 50);
    for (int64_t head = 0; head < a.n_kv_heads; ++head) {
      std::vector<int32_t> ends;
      for (int32_t i = 0; i < kLength; ++i) {
        if (i + 1 == kLength || !reference.joins(i + 1, head)) ends.push_back(i);
      }
      EXPECT_LT(ends.size(), size_t{kLength}) << rule;
      EXPECT_GT(ends.size(), 1u) << rule;
      EXPECT_EQ(kept.layer(0).merged()[static_cast<size_t>(head)].positions, ends) << rule;
    }
  }
}

TEST_F(Merging, BytesAreThoseOfTheSlots) {
  KvCache plain = cache("f16");
  run(plain, kLength, 64);
  const AttentionDesc& a = model_->desc().layers[0].attention;
  const auto heads = static_cast<int64_t>(plain.n_layers()) * a.n_kv_heads;
  const int64_t block = 2 * kKeyBlock * a.d_head * 2, width = 4 * (1 + 2 * a.d_head);
  const auto bytes_of = [&](const char* text) {
    KvCache kept = cache(text);
    run(kept, kLength, 64);
    return static_cast<int64_t>(kept.n_bytes());
  };
  EXPECT_EQ(static_cast<int64_t>(plain.n_bytes()), 4 * heads * block);
  retrain(constant_decisions(1, 0));  // a slot for a head
  const int64_t whole = bytes_of("kv(merge=dmc(window=0, decision=linear))");
  EXPECT_EQ(whole, heads * (block + 4 + width));
  // Lists double as they grow.
  const int64_t windowed = bytes_of("kv(merge=dmc(window=12, decision=linear))");
  EXPECT_GE(windowed, heads * (block + 4 + 12 * width));
  EXPECT_LE(windowed, heads * (block + 4 + 24 * width));
  retrain(constant_decisions(-1, 0));
  const int64_t apart = bytes_of("kv(merge=dmc(window=0, decision=linear))");
  EXPECT_GE(apart, heads * (4 * block + 4 * kLength + width));
  EXPECT_LE(apart, heads * (4 * block + 8 * kLength + width));
}

TEST_F(Merging, ForksAreCountedOnce) {
  KvCache one = cache("kv(merge=dmc(decision=linear))");
  run(one, 150, 64);
  std::vector<KvCache> caches;
  caches.push_back(one.fork());
  caches.push_back(std::move(one));
  EXPECT_LT(kv_bytes(caches), 2 * caches[0].n_bytes());
  EXPECT_GT(caches[0].copy().n_bytes(), 0u);
  // What one goes on with the other does not see.
  const Matrix<float> whole = run("kv(merge=dmc(decision=linear))", kLength);
  std::swap(ids_[150], ids_[151]);
  run(caches[0], kLength, 64);
  std::swap(ids_[150], ids_[151]);
  const Matrix<float> rest = run(caches[1], kLength, 64);
  for (int64_t i = 0; i < rest.rows() * rest.cols(); ++i) {
    ASSERT_EQ(rest.data()[i], whole.row(150)[i]);
  }
}

TEST_F(Merging, GoesBackToTheBeginningOnly) {
  KvCache kept = cache("kv(merge=dmc(decision=linear))");
  const Matrix<float> whole = run(kept, kLength, 64);
  EXPECT_FALSE(kept.truncate(kLength - 1));
  EXPECT_TRUE(kept.truncate(kLength));
  ASSERT_TRUE(kept.truncate(0));
  EXPECT_EQ(kept.layer(0).merged()[0].slots.n_slots(), 0);
  EXPECT_EQ(run(kept, kLength, 64), whole);
}

TEST_F(Merging, WrongTextsAndFilesSayWhatIsExpected) {
  expect_problem("kv(merge=mean)", "expected one of dmc");
  expect_problem("kv(merge=dmc(decision=middle))", "last|first|linear");
  expect_problem("kv(merge=dmc(decision=linear, offset=3))", "offset");
  expect_problem("kv(k=int(4), v=int(4), merge=dmc)", "with codecs or a policy");
  expect_problem("kv(evict=h2o(60), merge=dmc)", "with codecs or a policy");
  expect_problem("kv(window=4, merge=dmc)", "for codecs");
  EXPECT_EQ(problem_of("kv(merge=dmc)"), "");
  std::filesystem::remove(kv_tables_path(path_));
  EXPECT_EQ(problem_of("kv(merge=dmc)"), "");  // its decisions are in the heads
  expect_problem("kv(merge=dmc(decision=linear))", "training makes it");
}

}  // namespace
}  // namespace quern
