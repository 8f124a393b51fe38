// SPDX-License-Identifier: Apache-2.0
#include "kernels/tiles_check.h"

#include <bit>
#include <cstdint>
#include <vector>

#include "base/random.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

bool panels_alike(const KernelTable& table, const KernelTable& reference, int64_t group) {
  constexpr int64_t kRows = 40, kPanels = 3, kInputs = 37, kGroups = 2;
  const int64_t cols = kGroups * group;
  Random random(1);
  AlignedVector<uint8_t> levels(static_cast<size_t>(kPanels * kPanelRows * cols));
  for (uint8_t& level : levels) level = static_cast<uint8_t>(random.next());
  AlignedVector<float> scales(kPanels * kPanelRows * kGroups);
  for (float& scale : scales) scale = static_cast<float>(random.uniform());
  AlignedVector<int8_t> x;
  std::vector<float> x_scales;
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < kInputs * kGroups; ++i) {
    int32_t sum = 0;
    for (int64_t j = 0; j < group; ++j) {
      x.push_back(static_cast<int8_t>(static_cast<int>(random.below(255)) - 127));
      sum += x.back();
    }
    x_scales.push_back(static_cast<float>(random.uniform()));
    offsets.push_back(-static_cast<int32_t>(kPanelZero) * sum);
  }
  const Panels panels{
      levels.data(), scales.data(), cols * kPanelRows, kGroups * kPanelRows, kRows, 0, kGroups};
  const Int8Rows rows{x.data(), x_scales.data(), offsets.data(), kInputs, kGroups, group, cols};
  std::vector<float> got(kInputs * kRows), want(got);
  table.panel_dot(panels, rows, got.data(), kRows);
  reference.panel_dot(panels, rows, want.data(), kRows);
  return got == want;
}

bool pairs_alike(const KernelTable& table, const KernelTable& reference) {
  constexpr int64_t kInputs = 20, kTerms = 96, kColumns = 40;
  Random random(2);
  const auto next = [&] { return static_cast<float>(static_cast<int>(random.below(255)) - 127); };
  AlignedVector<float> a(kInputs * kTerms);
  for (float& value : a) value = next();
  AlignedVector<uint16_t> block(kTerms * kColumns);
  for (uint16_t& half : block) half = static_cast<uint16_t>(std::bit_cast<uint32_t>(next()) >> 16);
  const uint16_t* const blocks[] = {block.data()};
  std::vector<float> got(kInputs * kColumns), want(got);
  PairProduct product{a.data(), kTerms, 0, kInputs, blocks, 1, kTerms, kColumns};
  product.ld_y = kColumns;
  product.y = got.data();
  table.pair_product(product);
  product.y = want.data();
  reference.pair_product(product);
  return got == want;
}

}  // namespace

bool multiplies_alike(const KernelTable& table, const KernelTable& reference) {
  return panels_alike(table, reference, 64) && panels_alike(table, reference, 256) &&
         pairs_alike(table, reference);
}

}  // namespace quern
