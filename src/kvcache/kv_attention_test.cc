// SPDX-License-Identifier: Apache-2.0
// Attention over coded pages: its error, and that nothing but a query and what it sees shows.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "kvcache/kv_cache.h"

namespace quern {
namespace {

constexpr int64_t kPositions = 1500, kDims = 64, kHeads = 3;  // heads that share a KV head

const char* const kTexts[] = {"q8",
                              "kivi-4bit",
                              "kivi-2bit",
                              "kv(k=int(3), v=int(1, group=16))",
                              "kv(k=int(2, group=64), v=int(2, per=channel))",
                              "kv(k=lloyd(3), v=lloyd(4))",
                              "kv(k=f16, v=lloyd(2))",
                              "kv(k=int(3), v=int(3), sinks=2)",
                              "kv(k=gear(int(2, per=channel, group=64)), v=gear(int(2, group=64)))",
                              "kv(k=qaq(20), v=qaq(10))",
                              "decoquant-4bit",
                              "kv(k=deco(int(2, per=channel)), v=deco(lloyd(2), block=8), sinks=2)",
                              "kv(k=deco(gear(int(3), rank=1)), v=deco(gear(int(3), rank=1)))",
                              "kv(k=deco(f16), v=deco(int(4), split=1), window=100)",
                              "kv(k=int(4), v=f16, window=100)"};

struct Problem {
  LayerKv kv;
  std::vector<float> q;  // [kPositions, kHeads * kDims]
  int64_t window;        // of attention; 0: none

  static LayerKv filled(const char* text) {
    LayerKv kv({1, kDims}, kPositions, std::make_shared<const KvRecipe>(*KvRecipe::parse(text)));
    Random random(7);
    Matrix<float> k(kPositions, kDims), v(kPositions, kDims);
    for (Matrix<float>* x : {&k, &v}) {
      for (int64_t i = 0; i < kPositions * kDims; ++i) {
        x->data()[i] = static_cast<float>(random.gaussian());
      }
    }
    kv.put(0, k.view(), v.view());
    return kv;
  }
  Problem(const char* text, int64_t window)
      : kv(filled(text)), q(static_cast<size_t>(kPositions * kHeads * kDims)), window(window) {
    Random random(8);
    for (float& x : q) x = static_cast<float>(random.gaussian());
  }

  // Queries [first, first + n), from codes or from the floats that codes stand for.
  std::vector<float> attend(int64_t first, int64_t n, const KernelTable& table = kernels(),
                            const KvBlocks* floats = nullptr) const {
    std::vector<int64_t> begin, coded, end;
    for (int64_t p = first; p < first + n; ++p) {
      end.push_back(p + 1);
      begin.push_back(window > 0 ? std::max<int64_t>(0, p + 1 - window) : 0);
      coded.push_back(std::max(begin.back(), kv.recipe().coded_before(p)));
    }
    const LayerKv::Codes codes(kv, 0);
    const LayerKv::Exact exact(kv, 0);
    const KvSegment segments[] = {{&codes, begin.data(), coded.data()},
                                  {&exact, coded.data(), end.data()}};
    const KvSegment whole[] = {{floats, begin.data(), end.data()}};
    AttendArgs args;
    args.q = q.data() + first * kHeads * kDims;
    args.ld_q = args.ld_out = kHeads * kDims;
    args.n_q = n;
    args.n_heads = kHeads;
    args.d_head = kDims;
    args.segments = floats != nullptr ? std::span<const KvSegment>(whole) : segments;
    args.n_ctx = first + n;
    args.scale = 0.125f;
    std::vector<float> out(static_cast<size_t>(n * kHeads * kDims));
    args.out = out.data();
    quern::attend(args, table);
    return out;
  }
};

// Of the newest query alone, so that every page is there, codes before and halves after.
TEST(KvAttention, RoundedRowsCostLittle) {
  for (const char* text : kTexts) {
    const Problem p(text, 0);
    KvScratchMemory memory;
    AlignedVector<float> keys, values, block(static_cast<size_t>(kKeyBlock * kDims));
    const int64_t n_coded = p.kv.recipe().coded_before(kPositions - 1) / kKeyBlock;
    const LayerKv::Codes codes(p.kv, 0);
    const LayerKv::Exact exact(p.kv, 0);
    for (int64_t b = 0; b * kKeyBlock < kPositions; ++b) {
      const KvBlocks& blocks = b < n_coded ? static_cast<const KvBlocks&>(codes) : exact;
      const int64_t n = std::min(kKeyBlock, kPositions - b * kKeyBlock);
      const float* x =
          floats_of(blocks.keys(b, memory.view(kDims)), kKeyBlock * kDims, block.data());
      keys.insert(keys.end(), x, x + kKeyBlock * kDims);
      x = floats_of(blocks.values(b, memory.view(kDims)), n * kDims, block.data());
      values.insert(values.end(), x, x + n * kDims);
    }
    const StoredBlocks floats(keys.data(), values.data(), DType::kF32, kDims);
    const std::vector<float> got = p.attend(kPositions - 1, 1);
    const std::vector<float> want = p.attend(kPositions - 1, 1, kernels(), &floats);
    double error = 0, energy = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - want[i], 2);
      energy += std::pow(static_cast<double>(want[i]), 2);
    }
    // A step is a 127th (32639th) of the largest of 64 Gaussian numbers, about 2.4 of their
    // deviation; half of it at most, evenly spread: .0055 of a score, which is about 1 here, and as
    // much of the weights, which meet values that cancel: twice or three times that.
    const bool is_fine = std::string_view(text) == "q8";
    EXPECT_LT(std::sqrt(error / energy), is_fine ? .0001 : .02) << text;
    if (std::string_view(text).find("f16") == std::string_view::npos) {
      EXPECT_GT(error, 0) << text;
    }
  }
}

// With windows that begin within a page, and queries on both sides of a page's and a span's end.
TEST(KvAttention, AQueryAloneHasTheBitsOfAQueryInATile) {
  for (const char* text : kTexts) {
    for (const int64_t window : {0, 200}) {
      const Problem p(text, window);
      for (const int64_t first : {1000, 1150}) {
        const int64_t n = 50, row = kHeads * kDims;
        const std::vector<float> together = p.attend(first, n);
        for (int64_t i = 0; i < n; i += 7) {
          const std::vector<float> alone = p.attend(first + i, 1);
          for (int64_t c = 0; c < row; ++c) {
            ASSERT_EQ(alone[static_cast<size_t>(c)], together[static_cast<size_t>(i * row + c)])
                << text << " " << window << " " << first + i;
          }
        }
      }
    }
  }
}

TEST(KvAttention, EveryIsaGivesTheSameBits) {
  for (const char* text : kTexts) {
    const Problem p(text, 200);
    const std::vector<float> want = p.attend(1010, 30, kernels(Isa::kRef));
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!host_has(isa)) continue;
      EXPECT_EQ(p.attend(1010, 30, kernels(isa)), want) << text;
    }
  }
}

}  // namespace
}  // namespace quern
