// SPDX-License-Identifier: Apache-2.0
// Pages of keys before RoPE, and first positions that stay as they came.
#include "kvcache/kv_rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kvcache/kv_cache.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims = 48;

RopeDesc some_rope(int n_dims) {
  RopeDesc rope;
  rope.n_dims = n_dims;
  for (int j = 0; j < n_dims / 2; ++j) rope.inv_freq.push_back(std::pow(1e4, -2.0 * j / n_dims));
  return rope;
}

// As the model turns a head, position by position. An angle is off by a rounding of each of its two
// parts and of what adds them up: a few units of 2^-24 of a pair's length, in two numbers.
TEST(KvRope, TurnsAsTheModelDoes) {
  for (const int n_dims : {48, 32}) {
    const RopeDesc desc = some_rope(n_dims);
    const KvRope rope(desc, 2000);
    for (const int64_t block : {0, 1, 30}) {
      const std::vector<float> x = gaussian_page(kDims, 1);
      std::vector<float> turned = x;
      rope.apply(block, RopeWay::kTurn, turned.data());
      for (int64_t p = 0; p < kKeyBlock; ++p) {
        std::vector<float> head, cosine, sine;
        for (int64_t c = 0; c < kDims; ++c)
          head.push_back(x[static_cast<size_t>(c * kKeyBlock + p)]);
        for (const double step : desc.inv_freq) {
          cosine.push_back(
              static_cast<float>(std::cos(static_cast<double>(block * kKeyBlock + p) * step)));
          sine.push_back(
              static_cast<float>(std::sin(static_cast<double>(block * kKeyBlock + p) * step)));
        }
        kernels().rope(cosine.data(), sine.data(), n_dims, head.data());
        for (int64_t c = 0; c < kDims; ++c) {
          EXPECT_NEAR(turned[static_cast<size_t>(c * kKeyBlock + p)], head[static_cast<size_t>(c)],
                      5 * 8 * 0x1p-24);
        }
      }
    }
  }
}

TEST(KvRope, TurnsBack) {
  const KvRope rope(some_rope(32), 500);
  const std::vector<float> x = gaussian_page(kDims, 2);
  std::vector<float> y = x;
  rope.apply(6, RopeWay::kTurn, y.data());
  EXPECT_NE(y, x);
  rope.apply(6, RopeWay::kTurnBack, y.data());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 5 * 8 * 0x1p-24);
}

TEST(KvRope, EveryIsaGivesTheSameBits) {
  if (!host_has(Isa::kAvx512)) GTEST_SKIP();
  const std::vector<float> cosine = gaussian_page(1, 3), sine = gaussian_page(1, 4);
  for (const float sign : {1.0f, -1.0f}) {
    const RopePair pair{cosine.data(), sine.data(), .3f, -.9f, sign};
    std::vector<float> x = gaussian_page(2, 5), y = x;
    turn_pair_ref(pair, x.data(), x.data() + kKeyBlock);
    turn_pair_avx512(pair, y.data(), y.data() + kKeyBlock);
    EXPECT_EQ(x, y);
  }
}

LayerKv layer_of(std::string_view text, int64_t n, int64_t heads = 2) {
  KvShape shape{heads, kDims, std::make_shared<const KvRope>(some_rope(kDims), n)};
  return {shape, n, std::make_shared<const KvRecipe>(*KvRecipe::parse(text))};
}

// Positions of one sequence, in calls of `step`.
void put_gaussian(LayerKv& kv, int64_t n, int64_t step, float scale_of_first = 1) {
  Random random(6);
  Matrix<float> k(n, 2 * kDims), v(n, 2 * kDims);
  for (Matrix<float>* x : {&k, &v}) {
    for (int64_t i = 0; i < n * 2 * kDims; ++i) {
      x->data()[i] = static_cast<float>(random.gaussian()) * (i < 6 * kDims ? scale_of_first : 1);
    }
  }
  for (int64_t i = 0; i < n; i += step) {
    const int64_t count = std::min(step, n - i);
    kv.put(i, k.view().row_range(i, count), v.view().row_range(i, count));
  }
}

std::vector<float> page_of(const LayerKv& kv, KvSide side, int64_t head, int64_t block) {
  const LayerKv::Codes codes(kv, head);
  KvScratchMemory memory;
  const KvScratch scratch = memory.view(kDims);
  std::vector<float> x(static_cast<size_t>(kKeyBlock * kDims));
  const KvOperand read =
      side == KvSide::kKeys ? codes.keys(block, scratch) : codes.values(block, scratch);
  const float* floats = floats_of(read, kKeyBlock * kDims, x.data());
  std::copy_n(floats, x.size(), x.begin());
  return x;
}

// Codes that lose nothing but the rounding to halves, once as attention reads keys and once before.
TEST(KvRope, KeysThatAreCodedBeforeRopeAreReadBehindIt) {
  LayerKv stored = layer_of("kv(k=f16, v=f16)", 200),
          turned = layer_of("kv(k=f16, v=f16, rope=read)", 200);
  for (LayerKv* kv : {&stored, &turned}) put_gaussian(*kv, 200, 70);
  for (const int64_t block : {0, 1, 2}) {
    const std::vector<float> x = page_of(stored, KvSide::kKeys, 1, block);
    const std::vector<float> y = page_of(turned, KvSide::kKeys, 1, block);
    EXPECT_NE(x, y);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], y[i], 2 * 8 * 0x1p-12);
    EXPECT_EQ(page_of(stored, KvSide::kValues, 1, block),
              page_of(turned, KvSide::kValues, 1, block));
  }
}

constexpr const char* kSinkTexts[] = {
    "kv(k=int(2, per=channel), v=int(2, group=16), sinks=3)",
    "kv(k=f16, v=gear(int(2, group=16)), sinks=3)",
    "kv(k=gear(int(3, group=16)), v=lloyd(3), sinks=3, rope=read)",
};

// First positions 50 times as large: they come back as halves, and nobody's codes know of them.
TEST(KvSinks, FirstPositionsComeBackAndOthersDoNotSeeThem) {
  for (const char* text : kSinkTexts) {
    LayerKv exact = layer_of("kv(k=f16, v=f16)", 200), large = layer_of(text, 200);
    LayerKv even = layer_of(text, 200);
    put_gaussian(exact, 200, 200, 50);
    put_gaussian(large, 200, 200, 50);
    put_gaussian(even, 200, 33);
    for (const KvSide side : kSides) {
      for (const int64_t head : {0, 1}) {
        const std::vector<float> want = page_of(exact, side, head, 0),
                                 got = page_of(large, side, head, 0);
        const std::vector<float> other = page_of(even, side, head, 0);
        for (int64_t p = 0; p < kKeyBlock; ++p) {
          for (int64_t c = 0; c < kDims; ++c) {
            const auto at =
                static_cast<size_t>(side == KvSide::kKeys ? c * kKeyBlock + p : p * kDims + c);
            // What is added to levels is a difference of floats, of numbers up to 300.
            if (p < 3) {
              EXPECT_NEAR(got[at], want[at], 4 * 300 * 0x1p-24) << text;
            } else {
              EXPECT_EQ(got[at], other[at]) << text;
            }
          }
        }
        EXPECT_EQ(page_of(large, side, head, 1), page_of(even, side, head, 1));
      }
    }
  }
}

TEST(KvSinks, AreCountedOnceWhateverShares) {
  LayerKv with = layer_of(kSinkTexts[0], 200),
          without = layer_of("kv(k=int(2, per=channel), v=int(2, group=16))", 200);
  put_gaussian(with, 200, 200);
  put_gaussian(without, 200, 200);
  std::set<const void*> seen;
  const LayerKv fork = with;
  std::set<const void*> other;
  EXPECT_EQ(with.n_new_bytes(seen), without.n_new_bytes(other) + 2 * 2 * 3 * kDims * 2);
  EXPECT_EQ(fork.n_new_bytes(seen), 0U);
}

TEST(KvRecipe, WhatDoesNotGoTogetherSaysSo) {
  for (const char* text :
       {"kv(k=int(2), v=int(2), rope=read, rotate=true)", "kv(sinks=1, evict=h2o(64))",
        "kv(k=int(4), v=int(4), sinks=1, evict=snapkv(64))"}) {
    EXPECT_FALSE(KvRecipe::parse(text)) << text;
  }
  const auto recipe = KvRecipe::parse("kv(k=int(2), v=int(2), window=64, sinks=2, rope=read)");
  EXPECT_EQ(recipe->text, "kv(int(2), int(2), window=64, sinks=2, rope=read)");
  // 3 bits of 64 positions; 136 and the two first as halves.
  const KvShape shape = ready_shape({1, 64}, 200, *recipe);
  KvCache cache({shape}, 200, *recipe);
  const Matrix<float> rows = gaussian_rows(200, 64, 1);
  cache.layer(0).put(0, rows.view(), rows.view());
  cache.advance(200);
  EXPECT_DOUBLE_EQ(cache.coded_bits(), 3);
  EXPECT_DOUBLE_EQ(cache.held_bits(), (3.0 * 128 + 16 * (72 + 2)) / 200);
}

}  // namespace
}  // namespace quern
