// SPDX-License-Identifier: Apache-2.0
// What a block is stored as, as attention reads it.
#include "base/check.h"
#include "kernels/attention.h"

namespace quern {

const float* floats_of(const KvOperand& operand, int64_t n, float* floats,
                       const KernelTable& table) {
  if (operand.floats != nullptr) return operand.floats;
  if (operand.levels != nullptr) {
    table.level_floats(*operand.levels, floats);
    if (operand.added != nullptr) correct_floats(*operand.added, floats, table);
    if (operand.factor != nullptr) {
      const LevelBlock& block = *operand.levels;
      const bool is_of_keys = operand.factor->is_of_keys;
      multiply_block(*operand.factor, is_of_keys ? block.cols : block.rows,
                     is_of_keys ? block.rows : block.cols, floats, table);
    }
    return floats;
  }
  table.f16_to_float(operand.halves, n, floats);
  return floats;
}

KvOperand StoredBlocks::load(const void* store, int64_t block) const {
  const int64_t first = block * kKeyBlock * d_head_;
  const char* from = static_cast<const char*>(store) + first * dtype_bits(dtype_) / 8;
  if (dtype_ == DType::kF32) return {.floats = reinterpret_cast<const float*>(from)};
  if (dtype_ == DType::kF16) return {.halves = from};
  QUERN_CHECK(dtype_ == DType::kBF16);
  return {.pairs = reinterpret_cast<const uint16_t*>(from)};
}

}  // namespace quern
