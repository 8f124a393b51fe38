// SPDX-License-Identifier: Apache-2.0
#include "kernels/tiles_check.h"

#include <gtest/gtest.h>

#include "kernels/parity_testing.h"

namespace quern {

void fill_panels_emulated(KernelTable& table);  // AMX's kernels over those of AVX-512
void fill_pairs_emulated(KernelTable& table);

namespace {

TEST(TilesCheck, PassesTablesThatAreRight) {
  for (const Isa isa : testing::fast_isas()) {
    EXPECT_TRUE(multiplies_alike(kernels(isa), kernels(Isa::kRef))) << isa_name(isa);
  }
  if (!host_has(Isa::kAvx512)) return;
  KernelTable emulated = kernels(Isa::kAvx512);
  fill_panels_emulated(emulated);
  fill_pairs_emulated(emulated);
  EXPECT_TRUE(multiplies_alike(emulated, kernels(Isa::kRef)));
}

TEST(TilesCheck, SeesOneWrongSumOfEither) {
  KernelTable panels = kernels(Isa::kRef), pairs = panels;
  panels.panel_dot = [](const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) {
    kernels(Isa::kRef).panel_dot(w, x, y, ld_y);
    y[(x.n - 1) * ld_y + w.n_rows - 1] += 1;
  };
  pairs.pair_product = [](const PairProduct& product) {
    kernels(Isa::kRef).pair_product(product);
    product.y[(product.n_rows - 1) * product.ld_y + product.n - 1] += 1;
  };
  EXPECT_FALSE(multiplies_alike(panels, kernels(Isa::kRef)));
  EXPECT_FALSE(multiplies_alike(pairs, kernels(Isa::kRef)));
}

}  // namespace
}  // namespace quern
