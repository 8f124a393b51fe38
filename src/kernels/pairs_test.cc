// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "base/float_types.h"
#include "kernels/pair_product.h"
#include "kernels/parity_testing.h"
#include "kernels/tables.h"

namespace quern {

void fill_pairs_emulated(KernelTable& table);

namespace {

using testing::Guarded;

// AVX-512 with tiles in memory, where the host has AVX-512.
std::vector<KernelTable> fast_tables() {
  std::vector<KernelTable> tables;
  for (const Isa isa : testing::fast_isas()) tables.push_back(kernels(isa));
  if (host_has(Isa::kAvx512)) {
    tables.push_back(kernels(Isa::kAvx512));
    fill_pairs_emulated(tables.back());
  }
  return tables;
}

struct Problem {
  PairProduct product;
  std::vector<float> a;
  std::vector<uint16_t> packed_a;
  std::vector<std::vector<uint16_t>> blocks;
  std::vector<const uint16_t*> at;

  Problem(int64_t n_rows, int64_t n_blocks, int64_t n_v, int64_t n, bool is_sum, uint64_t seed) {
    Random random(seed);
    const auto draw = [&random] {
      const double size = std::exp2(static_cast<double>(random.below(40)) - 20);
      const auto x = static_cast<float>(random.gaussian() * size);
      return random.below(8) == 0 ? 0.0f : x;
    };
    const int64_t width = is_sum ? n_blocks * n_v : n_v;
    for (int64_t i = 0; i < n_rows * (width + 3); ++i) a.push_back(draw());
    kernels(Isa::kRef).round_bf16(a.data(), static_cast<int64_t>(a.size()), a.data());
    for (int64_t b = 0; b < n_blocks; ++b) {
      std::vector<uint16_t>& block = blocks.emplace_back();
      for (int64_t i = 0; i < n_v * n; ++i) block.push_back(float_to_bf16(draw()));
    }
    for (const auto& block : blocks) at.push_back(block.data());
    product.a = a.data();
    product.ld_a = width + 3;
    product.step_a = is_sum ? n_v : 0;
    product.n_rows = n_rows;
    product.blocks = at.data();
    product.n_blocks = n_blocks;
    product.n_v = n_v;
    product.n = n;
    product.step_y = is_sum ? 0 : n;
    product.ld_y = (is_sum ? n : n_blocks * n) + 5;
  }

  std::vector<float> run(const KernelTable& table) {
    Guarded<float> y(product.n_rows * product.ld_y, 3);
    std::fill_n(y.data(), y.size(), 8.0f);
    product.y = y.data();
    table.pair_product(product);
    EXPECT_TRUE(y.guards_hold());
    return {y.data(), y.data() + y.size()};
  }
};

TEST(PairProduct, RowsMayBePacked) {
  std::vector<KernelTable> tables = fast_tables();
  tables.push_back(kernels(Isa::kRef));
  uint64_t seed = 500;
  for (const bool is_sum : {false, true}) {
    for (const int64_t n_rows : {1, 3, 12, 32, 45}) {
      for (const int64_t n : {16, 24, 32, 96}) {
        Problem problem(n_rows, 2, 96, n, is_sum, ++seed);
        const std::vector<float> want = problem.run(kernels(Isa::kRef));
        for (const float x : problem.a) problem.packed_a.push_back(float_to_bf16(x));
        problem.product.packed_a = problem.packed_a.data();
        problem.product.a = nullptr;
        for (const KernelTable& table : tables) {
          ASSERT_EQ(problem.run(table), want) << n_rows << " x " << n;
        }
      }
    }
  }
}

TEST(PackPairs, PutsEveryRoundedNumberInItsPlaceAndZerosBehind) {
  std::vector<KernelTable> tables = fast_tables();
  tables.push_back(kernels(Isa::kRef));
  for (const int64_t n : {1, 2, 15, 16, 17, 32, 40}) {
    for (const int64_t k : {1, 31, 32, 33, 64, 100}) {
      const int64_t ld = k + 3, n_terms = (k + 31) / 32 * 32;
      Guarded<float> w(n * ld, 1);
      testing::fill(w.data(), w.size(), testing::Fill::kGaussian, 7);
      w[0] = 1e-30f;
      for (const KernelTable& table : tables) {
        Guarded<uint16_t> block(n * n_terms, 2);
        std::fill_n(block.data(), block.size(), uint16_t{0x1234});
        table.pack_pairs(w.data(), ld, n, k, block.data());
        for (int64_t j = 0; j < n; ++j) {
          for (int64_t p = 0; p < n_terms; ++p) {
            float value = 0;
            if (p < k) kernels(Isa::kRef).round_bf16(w.data() + j * ld + p, 1, &value);
            ASSERT_EQ(bf16_to_float(block[pair_place(n, p, j)]), value) << n << " x " << k;
          }
        }
        EXPECT_TRUE(block.guards_hold());
      }
    }
  }
}

TEST(PairProduct, IsaAndTilesGiveTheBitsOfTheReference) {
  const std::vector<KernelTable> tables = fast_tables();
  uint64_t seed = 0;
  for (const bool is_sum : {false, true}) {
    for (const int64_t n_rows : {1, 2, 3, 7, 8, 15, 16, 31, 32, 64, 70}) {
      for (const int64_t n_v : {8, 32, 64, 72, 128}) {
        if (is_sum && n_v % kPairGroup != 0) continue;
        for (const int64_t n : {7, 16, 40, 64}) {
          Problem problem(n_rows, 1 + static_cast<int64_t>(seed % 3), n_v, n, is_sum, seed);
          ++seed;
          const std::vector<float> want = problem.run(kernels(Isa::kRef));
          for (const KernelTable& table : tables) {
            ASSERT_EQ(problem.run(table), want) << n_rows << " x " << n_v << " x " << n;
          }
        }
      }
    }
  }
}

// Against double: every term is off by the roundings of its chain, and a sum by one for its group.
TEST(PairProduct, IsTheSumOfProducts) {
  Problem problem(5, 2, 64, 24, true, 99);
  const std::vector<float> y = problem.run(kernels());
  const PairProduct& p = problem.product;
  for (int64_t i = 0; i < p.n_rows; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double exact = 0, size = 0;
      for (int64_t t = 0; t < p.n_blocks * p.n_v; ++t) {
        const int64_t within = t % p.n_v;
        const double term =
            static_cast<double>(p.a[i * p.ld_a + t]) *
            bf16_to_float(p.blocks[t / p.n_v][(within / 2 * p.n + j) * 2 + within % 2]);
        exact += term;
        size += std::fabs(term);
      }
      EXPECT_NEAR(y[static_cast<size_t>(i * p.ld_y + j)], exact, 21 * 0x1p-24 * size);
    }
  }
}

// What attention counts on where a position is not seen: its weight is zero.
TEST(PairProduct, TermsOfWeightZeroAreInvisible) {
  Problem wide(4, 3, 64, 32, true, 7), narrow(4, 1, 64, 32, true, 7);
  for (int64_t i = 0; i < 4; ++i) {
    float* row = wide.a.data() + i * wide.product.ld_a;
    for (int64_t t = 0; t < 192; ++t) {
      if (t < 70 || t >= 120) row[t] = 0;
      if (t / 64 == 1) narrow.a[static_cast<size_t>(i * narrow.product.ld_a + t - 64)] = row[t];
    }
  }
  narrow.blocks[0] = wide.blocks[1];
  narrow.at[0] = narrow.blocks[0].data();
  EXPECT_EQ(wide.run(kernels()), narrow.run(kernels()));
}

TEST(RoundBf16, IsANearestBfloat16) {
  Guarded<float> x(1000, 1), y(1000, 2);
  for (const testing::Fill kind : {testing::Fill::kGaussian, testing::Fill::kSpecial}) {
    testing::fill(x.data(), x.size(), kind, 5);
    kernels(Isa::kRef).round_bf16(x.data(), x.size(), y.data());
    for (int64_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan(y[i]));
        continue;
      }
      const float held = std::fmin(std::fmax(x[i], -kMostBf16), kMostBf16);
      if (std::fabs(held) < kLeastBf16) {
        EXPECT_EQ(y[i], 0);
        continue;
      }
      const float nearest = bf16_to_float(float_to_bf16(held));
      EXPECT_EQ(std::fabs(static_cast<double>(y[i]) - held),
                std::fabs(static_cast<double>(nearest) - held));
      EXPECT_EQ(bf16_to_float(float_to_bf16(y[i])), y[i]);
    }
    for (const Isa isa : testing::fast_isas()) {
      Guarded<float> z(1000, 3);
      kernels(isa).round_bf16(x.data(), x.size(), z.data());
      for (int64_t i = 0; i < x.size(); ++i) ASSERT_TRUE(testing::same_bits(z[i], y[i])) << x[i];
      EXPECT_TRUE(z.guards_hold());
    }
  }
}

TEST(SoftmaxBf16, IsTheSoftmaxOfRoundedExponentials) {
  for (const int64_t n : testing::kSizes) {
    Guarded<float> x(n, 1), rounded(n, 2), exact(n, 3);
    testing::fill(x.data(), n, testing::Fill::kGaussian, static_cast<uint64_t>(n));
    std::copy_n(x.data(), n, rounded.data());
    std::copy_n(x.data(), n, exact.data());
    float lse = 0, exact_lse = 0;
    const float share = kernels(Isa::kRef).softmax_bf16(3, n, rounded.data(), &lse);
    kernels(Isa::kRef).softmax(3, n, exact.data(), &exact_lse);
    EXPECT_NEAR(lse, exact_lse, 0x1p-8);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      sum += static_cast<double>(rounded[i]) * share;
      EXPECT_NEAR(rounded[i] * share, exact[i], exact[i] * 0x1p-7 + 0x1p-49);
    }
    EXPECT_NEAR(sum, 1, 0x1p-22);
    for (const Isa isa : testing::fast_isas()) {
      Guarded<float> y(n, 5);
      std::copy_n(x.data(), n, y.data());
      float other = 0;
      EXPECT_EQ(kernels(isa).softmax_bf16(3, n, y.data(), &other), share);
      EXPECT_EQ(other, lse);
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(y[i], rounded[i]);
      EXPECT_TRUE(y.guards_hold());
    }
  }
}

TEST(SoftmaxBf16, OfNothingIsZero) {
  for (const Isa isa : {Isa::kRef, best_isa()}) {
    std::vector<float> x(20, -std::numeric_limits<float>::infinity());
    float lse = 0;
    EXPECT_EQ(kernels(isa).softmax_bf16(1, 20, x.data(), &lse), 0);
    EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
    EXPECT_EQ(x, std::vector<float>(20));
  }
}

}  // namespace
}  // namespace quern
