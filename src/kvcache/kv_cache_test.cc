// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/float_types.h"
#include "base/random.h"

namespace quern {
namespace {

constexpr int64_t kHeads = 3;

Matrix<float> random_rows(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  Matrix<float> x(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) x.data()[i] = static_cast<float>(random.gaussian());
  return x;
}

std::shared_ptr<const KvRecipe> recipe_of(std::string_view text) {
  auto recipe = KvRecipe::parse(text);
  EXPECT_TRUE(recipe) << text;
  return std::make_shared<const KvRecipe>(*std::move(recipe));
}

// Puts all rows, in calls of n[0], n[1], ... rows, over and over.
void put_all(LayerKv& kv, const Matrix<float>& k, const Matrix<float>& v,
             const std::vector<int64_t>& n) {
  int64_t first = 0;
  for (size_t i = 0; first < k.rows(); ++i) {
    const int64_t count = std::min(n[i % n.size()], k.rows() - first);
    kv.put(first, k.view().row_range(first, count), v.view().row_range(first, count));
    first += count;
  }
}

// Keys (turned back) and values that a query at the last of `length` positions reads.
std::pair<Matrix<float>, Matrix<float>> read_all(const LayerKv& kv, int64_t head, int64_t length,
                                                 int64_t d) {
  std::pair<Matrix<float>, Matrix<float>> read(Matrix<float>(length, d), Matrix<float>(length, d));
  KvScratchMemory memory;
  const KvScratch scratch = memory.view(d);
  std::vector<float> floats(static_cast<size_t>(kKeyBlock * d));
  const LayerKv::Codes codes(kv, head);
  const LayerKv::Exact exact(kv, head);
  const int64_t coded = kv.recipe().coded_before(length - 1);
  for (int64_t p = 0; p < length; ++p) {
    const KvBlocks& blocks = p < coded ? static_cast<const KvBlocks&>(codes) : exact;
    const int64_t block = p / kKeyBlock, row = p % kKeyBlock;
    if (blocks.is_paired()) {
      const uint16_t *keys = blocks.keys(block, {}).pairs, *values = blocks.values(block, {}).pairs;
      for (int64_t c = 0; c < d; ++c) {
        read.first(p, c) = bf16_to_float(keys[pair_place(kKeyBlock, c, row)]);
        read.second(p, c) = bf16_to_float(values[pair_place(d, row, c)]);
      }
      continue;
    }
    const float* keys = floats_of(blocks.keys(block, scratch), kKeyBlock * d, floats.data());
    for (int64_t c = 0; c < d; ++c) read.first(p, c) = keys[c * kKeyBlock + row];
    const float* values = floats_of(blocks.values(block, scratch), kKeyBlock * d, floats.data());
    for (int64_t c = 0; c < d; ++c) read.second(p, c) = values[row * d + c];
  }
  return read;
}

TEST(LayerKv, PlainStoresGiveBackWhatWasPut) {
  constexpr int64_t kDims = 80, kPositions = 150;
  Matrix<float> k(kPositions, kHeads * kDims), v(kPositions, kHeads * kDims);
  for (int64_t i = 0; i < kPositions * kHeads * kDims; ++i) {  // whole numbers that a half holds
    k.data()[i] = static_cast<float>(7 * i % 2048);
    v.data()[i] = -static_cast<float>(11 * i % 2048);
  }
  for (const char* text : {"f16", "f32", "bf16"}) {
    LayerKv kv({kHeads, kDims}, kPositions, recipe_of(text));
    if (std::string_view(text) == "bf16") {  // which holds fewer
      for (Matrix<float>* x : {&k, &v}) {
        kernels().round_bf16(x->data(), x->rows() * x->cols(), x->data());
      }
    }
    put_all(kv, k, v, {1, 62, 70, 17});  // a block of several calls, a call over two blocks
    for (int64_t head = 0; head < kHeads; ++head) {
      const auto [keys, values] = read_all(kv, head, kPositions, kDims);
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t c = 0; c < kDims; ++c) {
          ASSERT_EQ(keys(p, c), k(p, head * kDims + c)) << text << " " << head << " " << p;
          ASSERT_EQ(values(p, c), v(p, head * kDims + c));
        }
      }
    }
  }
}

// A weight of zero must hide what a query does not see.
TEST(LayerKv, Bfloat16IsKeptFinite) {
  Matrix<float> k(2, kHeads * 8), v(2, kHeads * 8);
  v.row(0)[0] = std::nanf("");
  v.row(0)[1] = -std::numeric_limits<float>::infinity();
  v.row(0)[2] = 1e-30f;
  LayerKv kv({kHeads, 8}, 2, recipe_of("bf16"));
  kv.put(0, k.view(), v.view());
  const Matrix<float> values = read_all(kv, 0, 2, 8).second;
  EXPECT_EQ(values(0, 0), kMostBf16);
  EXPECT_EQ(values(0, 1), -kMostBf16);
  EXPECT_EQ(values(0, 2), 0);
}

TEST(LayerKv, HowATextIsCutDoesNotShow) {
  constexpr int64_t kDims = 64, kPositions = 400;
  const Matrix<float> k = random_rows(kPositions, kHeads * kDims, 1);
  const Matrix<float> v = random_rows(kPositions, kHeads * kDims, 2);
  for (const char* text : {"q4", "kivi-2bit", "lloyd-3bit", "kv(k=f16, v=int(3), window=100)"}) {
    LayerKv whole({kHeads, kDims}, kPositions, recipe_of(text));
    put_all(whole, k, v, {kPositions});
    for (const std::vector<int64_t>& cut : {std::vector<int64_t>{1}, {64}, {63, 1, 130}}) {
      LayerKv kv({kHeads, kDims}, kPositions, recipe_of(text));
      put_all(kv, k, v, cut);
      for (int64_t head = 0; head < kHeads; ++head) {
        EXPECT_EQ(read_all(kv, head, kPositions, kDims), read_all(whole, head, kPositions, kDims));
      }
    }
  }
}

TEST(LayerKv, TakesTheBytesOfItsCodes) {
  constexpr int64_t kDims = 64, kPositions = 4096;
  const Matrix<float> k = random_rows(kPositions, kHeads * kDims, 5);
  LayerKv kv({kHeads, kDims}, kPositions, recipe_of("kivi-2bit"));
  put_all(kv, k, k, {1});
  std::set<const void*> seen;
  const auto n_bytes = static_cast<double>(kv.n_new_bytes(seen));
  const double halves = kPositions * kHeads * kDims * 2 * 2;
  EXPECT_GT(n_bytes, halves * 3 / 16);
  // The newest positions as halves, and an eighth for growth.
  EXPECT_LT(n_bytes, halves * (3 * 1.13 / 16 + 256.0 / kPositions));
}

TEST(LayerKv, GoesBackAsFarAsItHasWhatItNeeds) {
  constexpr int64_t kDims = 64, kPositions = 400;
  const Matrix<float> k = random_rows(kPositions, kHeads * kDims, 3);
  const Matrix<float> v = random_rows(kPositions, kHeads * kDims, 4);
  LayerKv once({kHeads, kDims}, kPositions, recipe_of("kivi-2bit"));
  put_all(once, k, v, {1});
  LayerKv kv = once;
  EXPECT_FALSE(kv.can_truncate(100));
  ASSERT_TRUE(kv.can_truncate(340));
  kv.truncate(340);
  kv.put(340, k.view().row_range(340, 60), v.view().row_range(340, 60));
  for (int64_t head = 0; head < kHeads; ++head) {
    EXPECT_EQ(read_all(kv, head, kPositions, kDims), read_all(once, head, kPositions, kDims));
  }
  ASSERT_TRUE(kv.can_truncate(0));
  kv.truncate(0);
  put_all(kv, k, v, {97});
  EXPECT_EQ(read_all(kv, 1, kPositions, kDims), read_all(once, 1, kPositions, kDims));
}

// A fork and its origin go on with different texts: each is what it would be alone.
TEST(LayerKv, ForksAreAsIfAlone) {
  constexpr int64_t kDims = 64, kPositions = 300;
  const Matrix<float> k = random_rows(kPositions, kHeads * kDims, 6);
  const Matrix<float> v = random_rows(kPositions, kHeads * kDims, 7);
  for (const char* text : {"f16", "f32", "bf16", "q4", "kivi-2bit"}) {
    for (const int64_t at : {0, 1, 63, 64, 65, 130, 192}) {
      const auto put = [&](LayerKv& kv, int64_t position, int64_t first, int64_t n) {
        kv.put(position, k.view().row_range(first, n), v.view().row_range(first, n));
      };
      LayerKv kv({kHeads, kDims}, kPositions, recipe_of(text));
      LayerKv alone = kv, other_alone = kv;
      put(kv, 0, 0, at);
      LayerKv fork = kv;
      for (int64_t i = 0; i < 90; ++i) {  // in turns
        put(kv, at + i, at + i, 1);
        put(fork, at + i, 200 + i, 1);
      }
      put(alone, 0, 0, at + 90);
      put(other_alone, 0, 0, at);
      put(other_alone, at, 200, 90);
      for (int64_t head = 0; head < kHeads; ++head) {
        EXPECT_EQ(read_all(kv, head, at + 90, kDims), read_all(alone, head, at + 90, kDims));
        EXPECT_EQ(read_all(fork, head, at + 90, kDims), read_all(other_alone, head, at + 90, kDims))
            << text << " " << at;
      }
    }
  }
}

TEST(KvCache, WhatForksShareCountsOnce) {
  constexpr int64_t kDims = 64, kRoom = 1024;
  const Matrix<float> k = random_rows(1000, kHeads * kDims, 8);
  for (const char* text : {"f16", "bf16", "kivi-2bit"}) {
    std::vector<KvCache> caches;
    caches.emplace_back(std::vector<KvShape>{{kHeads, kDims}}, kRoom, *KvRecipe::parse(text));
    const auto put = [&](KvCache& cache, int64_t n) {
      const MatrixView<const float> rows = k.view().row_range(cache.length(), n);
      cache.layer(0).put(cache.length(), rows, rows);
      cache.advance(n);
    };
    while (caches[0].length() < 990) put(caches[0], 10);
    for (int i = 0; i < 3; ++i) caches.push_back(caches[0].fork());
    const size_t one = caches[0].n_bytes();
    EXPECT_EQ(kv_bytes(caches), one);
    const KvCache copied = caches[0].copy();
    EXPECT_EQ(kv_bytes({&copied, 1}) + one, kv_bytes({&copied, 1}) + kv_bytes(caches));
    for (KvCache& cache : caches) put(cache, 5);
    // Each now has a tail of its own; the last to write found itself alone with the old one.
    const size_t block = size_t{2} * 2 * kHeads * kKeyBlock * kDims;
    EXPECT_EQ(kv_bytes(caches), one + 3 * block) << text;
  }
}

TEST(KvRecipe, TextsAreCanonical) {
  EXPECT_EQ(KvRecipe::parse("f32")->exact, DType::kF32);
  EXPECT_EQ(KvRecipe::parse("kivi-2bit")->text, "kv(int(2, per=channel), int(2), window=64)");
  for (const KvPreset& preset : kv_presets()) {
    const auto recipe = KvRecipe::parse(preset.name);
    ASSERT_TRUE(recipe) << preset.name;
    EXPECT_TRUE(recipe->check(128)) << preset.name;
    EXPECT_EQ(KvRecipe::parse(recipe->text)->text, recipe->text);
  }
  // 2 bits, and two halves for 32 numbers.
  EXPECT_EQ(KvRecipe::parse("kivi-2bit")->bits(128), 3);
  EXPECT_EQ(KvRecipe::parse("f16")->bits(128), 16);
  EXPECT_EQ(KvRecipe::parse("bf16")->bits(128), 16);
  EXPECT_EQ(KvRecipe::parse("bf16")->text, "bf16");
}

TEST(KvRecipe, WrongTextsSayWhatIsValid) {
  for (const auto& [text, mention] : std::vector<std::pair<const char*, const char*>>{
           {"q5", "kivi-2bit"},
           {"kv(k=int(5), v=int(4))", "1, 2, 3, 4 or 8"},
           {"kv(k=int(4))", "v"},
           {"kv(k=float(4), v=int(4))", "int"},
           {"kv(k=int(4, group=24), v=int(4))", "multiple of 16"}}) {
    const auto recipe = KvRecipe::parse(text);
    ASSERT_FALSE(recipe) << text;
    EXPECT_NE(recipe.error().message.find(mention), std::string::npos) << recipe.error().message;
  }
  EXPECT_FALSE(KvRecipe::parse("q4")->check(40));  // no multiple of 16
  EXPECT_FALSE(KvRecipe::parse("bf16")->check(41));
}

}  // namespace
}  // namespace quern
