// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <limits>

#include "base/file.h"
#include "base/random.h"
#include "kvcache/kv_testing.h"
#include "scratch.h"

namespace quern {
namespace {

const std::vector<KvShape> kShapes = {{2, 32}, {1, 64}};
constexpr int64_t kRoom = 400;

KvCache empty_cache(std::string_view text) {
  const KvRecipe recipe = *KvRecipe::parse(text);
  std::vector<KvShape> shapes;
  for (const KvShape& shape : kShapes) shapes.push_back(ready_shape(shape, kRoom, recipe));
  return {shapes, kRoom, recipe};
}

// Stores rows as attention does; where pages go by what it sees, it sees all positions alike.
void put(LayerKv& kv, int64_t n_heads, int64_t first, const Matrix<float>& k,
         const Matrix<float>& v) {
  if (!kv.adapts()) return kv.put(first, k.view(), v.view());
  for (int64_t i = 0; i < k.rows();) {
    const int64_t position = first + i, decision = (position / kKeyBlock + 1) * kKeyBlock;
    const int64_t n = std::min(k.rows() - i, decision - position);
    kv.put(position, k.view().row_range(i, n), v.view().row_range(i, n));
    i += n;
    if (position + n != decision) continue;
    const std::vector<float> weights(static_cast<size_t>(decision), .01f);
    kv.adapt(decision,
             std::vector<KvAttention>(static_cast<size_t>(n_heads), {weights.data(), 1, decision}));
  }
}

// The same rows for a position, whatever came before.
void grow(KvCache& cache, int64_t length) {
  const int64_t first = cache.length(), n = length - first;
  for (size_t i = 0; i < kShapes.size(); ++i) {
    Matrix<float> k(n, kShapes[i].n_kv_heads * kShapes[i].d_head), v = k;
    for (int64_t p = 0; p < n; ++p) {
      Random random(static_cast<uint64_t>(first + p), i);
      for (int64_t j = 0; j < k.cols(); ++j) {
        k(p, j) = static_cast<float>(random.gaussian());
        v(p, j) = static_cast<float>(random.gaussian());
      }
    }
    put(cache.layer(i), kShapes[i].n_kv_heads, first, k, v);
  }
  cache.advance(n);
}

KvFileHead head_of(int64_t n) {
  KvFileHead head{"some model", std::vector<int32_t>(static_cast<size_t>(n)), {1.5f, -2, 0}};
  for (size_t i = 0; i < head.tokens.size(); ++i) head.tokens[i] = static_cast<int32_t>(3 * i);
  return head;
}

std::string saved(const KvCache& cache) {
  const test::ScratchFolder scratch;
  EXPECT_TRUE(save_kv_file(scratch / "cache", cache, head_of(cache.length())));
  return *read_file(scratch / "cache");
}

std::span<const std::byte> bytes_of(const std::string& image) {
  return std::as_bytes(std::span(image));
}

// Of all layers: everything that later queries may read.
bool same_state(const KvCache& a, const KvCache& b) {
  for (size_t i = 0; i < kShapes.size(); ++i) {
    const auto x = a.layer(i).state(), y = b.layer(i).state();
    if (x.size() != y.size()) return false;
    for (size_t t = 0; t < x.size(); ++t) {
      if (x[t].name != y[t].name || x[t].shape != y[t].shape || x[t].bytes != y[t].bytes) {
        return false;
      }
    }
  }
  return true;
}

std::vector<std::string> all_recipes() {
  std::vector<std::string> texts = {"bf16", "f16", "f32", "kv(k=f16, v=int(3), window=100)"};
  for (const KvPreset& preset : kv_presets()) texts.emplace_back(preset.name);
  return texts;
}

TEST(KvFile, WhatIsLoadedGoesOnAsIfNeverSaved) {
  for (const std::string& text : all_recipes()) {
    for (const int64_t n : {1, 63, 64, 65, 127, 128, 200, 300}) {
      KvCache cache = empty_cache(text);
      for (int64_t p = 0; p < n; p += 50) grow(cache, std::min(p + 50, n));
      const std::string image = saved(cache);
      const auto file = KvFile::parse(bytes_of(image));
      ASSERT_TRUE(file) << file.error().message;
      EXPECT_EQ(file->head().tokens, head_of(n).tokens);
      EXPECT_EQ(file->head().hidden, head_of(n).hidden);
      EXPECT_EQ(file->head().model, "some model");
      KvCache loaded = empty_cache(text);
      const Status status = file->load(loaded);
      ASSERT_TRUE(status) << status.error().message;
      EXPECT_EQ(loaded.length(), n);
      EXPECT_TRUE(same_state(cache, loaded)) << text << " " << n;
      for (KvCache* one : {&cache, &loaded}) grow(*one, n + 90);
      EXPECT_TRUE(same_state(cache, loaded)) << text << " " << n;
      // In how many calls a text was read is not to be seen in the file.
      KvCache at_once = empty_cache(text);
      grow(at_once, n);
      EXPECT_EQ(saved(at_once), image) << text << " " << n;
    }
  }
}

TEST(KvFile, ACacheThatWentBackIsSavedToo) {
  KvCache cache = empty_cache("kivi-2bit");
  grow(cache, 200);
  grow(cache, 250);
  ASSERT_TRUE(cache.truncate(130));
  const std::string image = saved(cache);
  KvCache loaded = empty_cache("kivi-2bit");
  ASSERT_TRUE(KvFile::parse(bytes_of(image))->load(loaded));
  for (KvCache* one : {&cache, &loaded}) grow(*one, 320);
  EXPECT_TRUE(same_state(cache, loaded));
}

// The error of loading an image into a cache of `text`; empty if it loads.
std::string refusal(const std::string& image, std::string_view text) {
  const auto file = KvFile::parse(bytes_of(image));
  if (!file) return file.error().message;
  KvCache cache = empty_cache(text);
  const Status loaded = file->load(cache);
  return loaded ? "" : loaded.error().message;
}

TEST(KvFile, WhatDoesNotFitIsRefused) {
  KvCache cache = empty_cache("q4");
  grow(cache, 130);
  const std::string image = saved(cache);
  EXPECT_EQ(refusal(image, "q4"), "");
  EXPECT_NE(refusal(image, "q8").find("kv(int(4), int(4), rotate=true)"), std::string::npos);
  const auto load_into = [&](const std::vector<KvShape>& shapes, int64_t room) {
    KvCache other(shapes, room, *KvRecipe::parse("q4"));
    const Status loaded = KvFile::parse(bytes_of(image))->load(other);
    return loaded ? "" : loaded.error().message;
  };
  EXPECT_NE(load_into(kShapes, 129).find("130 tokens, room for 129"), std::string::npos);
  EXPECT_NE(load_into({{2, 32}}, kRoom).find("tensors"), std::string::npos);
  EXPECT_NE(load_into({{2, 32}, {2, 64}}, kRoom).find("layer 1"), std::string::npos);
  EXPECT_NE(load_into({{2, 32}, {1, 64}, {1, 64}}, kRoom).find("layer 2"), std::string::npos);
}

// Decisions to come multiply kept rows by keys: of so many numbers, at positions that there were.
TEST(KvFile, RowsForOtherHeadsAreRefused) {
  const auto with_queries = [](std::string_view text, int64_t n_rows, int64_t width) {
    KvCache cache = empty_cache(text);
    grow(cache, 20);
    for (size_t i = 0; i < kShapes.size(); ++i) {
      Matrix<float> rows(n_rows, width);
      cache.layer(i).slots().keep_queries(rows.view(), n_rows);
    }
    return saved(cache);
  };
  for (const char* text :
       {"kv(evict=snapkv(40, window=30))", "kv(k=qaq(50, rows=30), v=qaq(10, rows=30))"}) {
    EXPECT_EQ(refusal(with_queries(text, 20, 64), text), "");
    for (const int64_t width : {1, 63, 65, 128}) {
      EXPECT_NE(refusal(with_queries(text, 20, width), text).find("rows of 64"), std::string::npos)
          << text << " " << width;
    }
    EXPECT_NE(refusal(with_queries(text, 21, 64), text).find("at most 20 rows"), std::string::npos)
        << text;
  }
  KvCache moving = empty_cache("kv(evict=streaming(window=40))");
  grow(moving, 20);
  const auto keep = [&](int64_t width) {
    for (size_t i = 0; i < kShapes.size(); ++i) {
      moving.layer(i).slots().moving.clear();
      const Matrix<float> keys(4, width);
      moving.layer(i).slots().keep_moving(keys.view());
    }
    return saved(moving);
  };
  EXPECT_EQ(refusal(keep(64), "kv(evict=streaming(window=40))"), "");
  EXPECT_NE(refusal(keep(32), "kv(evict=streaming(window=40))").find("rows of 64"),
            std::string::npos);
}

TEST(KvFile, DamagedFilesAreRefusedOrHarmless) {
  for (const char* text :
       {"bf16", "f16", "kivi-2bit", "lloyd-3bit", "kv(k=gear(int(2)), v=int(2), sinks=2)"}) {
    KvCache cache = empty_cache(text);
    grow(cache, 200);
    const std::string image = saved(cache);
    for (size_t n = 0; n < image.size(); n += 1 + n / 8) {
      EXPECT_NE(refusal(image.substr(0, n), text), "") << n;
    }
    Random random(1);
    for (int i = 0; i < 300; ++i) {
      std::string other = image;
      const size_t at = i % 2 == 0 ? random.below(image.size()) : random.below(1200);
      other[at] = static_cast<char>(random.next());
      refusal(other, text);  // no crash
    }
    // Halves of all ones are no numbers.
    std::string ones = image;
    std::fill(ones.end() - 2000, ones.end(), '\xff');
    EXPECT_NE(refusal(ones, text).find("a number that is none"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace quern
