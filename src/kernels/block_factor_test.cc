// SPDX-License-Identifier: Apache-2.0
#include "kernels/block_factor.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "kernels/parity_testing.h"

namespace quern {
namespace {

std::vector<float> gaussian(int64_t n, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  testing::fill(x.data(), n, testing::Fill::kGaussian, seed);
  return x;
}

// q . (l S) = (q S') . l
TEST(BlockFactor, QueriesMayBeMultipliedInPlaceOfBlocks) {
  for (const auto& [m, d, n] : {std::array<int64_t, 3>{1, 16, 3}, {8, 48, 64}, {16, 64, 64}}) {
    const std::vector<float> s = gaussian(m * m, 1), q = gaussian(d, 2), l = gaussian(n * d, 3);
    std::vector<float> turned(s.size());
    for (int64_t i = 0; i < m * m; ++i) {
      turned[static_cast<size_t>(i)] = s[static_cast<size_t>(i % m * m + i / m)];
    }
    for (const bool is_of_keys : {true, false}) {
      const BlockFactor factor{m, is_of_keys, s.data(), turned.data()};
      const auto at = [&, n = n, d = d](const std::vector<float>& x, int64_t p, int64_t c) {
        return double{x[static_cast<size_t>(is_of_keys ? c * n + p : p * d + c)]};
      };
      std::vector<float> x = l, product(static_cast<size_t>(d));
      multiply_block(factor, n, d, x.data(), kernels());
      add_product(factor, turned.data(), q.data(), 1, d, product.data(), kernels());
      for (int64_t p = 0; p < n; ++p) {
        double want = 0, of_query = 0, of_block = 0;
        for (int64_t c = 0; c < d; ++c) {
          double stands_for = 0;
          for (int64_t i = 0; i < m; ++i) {
            stands_for += at(l, p, c / m * m + i) * s[static_cast<size_t>(i * m + c % m)];
          }
          const double of_c = q[static_cast<size_t>(c)];
          want += of_c * stands_for;
          of_block += of_c * at(x, p, c);
          of_query += product[static_cast<size_t>(c)] * at(l, p, c);
        }
        const double most = 1e-5 * std::sqrt(static_cast<double>(d * m));
        EXPECT_NEAR(of_block, want, most) << m << " " << d << " " << p;
        EXPECT_NEAR(of_query, want, most) << m << " " << d << " " << p;
      }
    }
  }
}

}  // namespace
}  // namespace quern
