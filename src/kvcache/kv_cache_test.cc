// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/float_types.h"
#include "kernels/attention.h"

namespace quern {
namespace {

// Element i of stored keys or values.
float stored(const std::byte* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, data + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, data + 2 * i, 2);
  return f16_to_float(half);
}

TEST(LayerKv, KeysLieTurnedInBlocksAndValuesInRows) {
  constexpr int64_t kHeads = 3, kDims = 80, kPositions = 150;
  // Whole numbers that a half holds, different at neighbouring places.
  const auto key = [](int64_t p, int64_t j) { return static_cast<float>((7 * p + 3 * j) % 2048); };
  Matrix<float> k(kPositions, kHeads * kDims), v(kPositions, kHeads * kDims);
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int64_t j = 0; j < k.cols(); ++j) {
      k(p, j) = key(p, j);
      v(p, j) = -key(p, j);
    }
  }
  for (DType dtype : {DType::kF16, DType::kF32}) {
    LayerKv kv({kHeads, kDims}, kPositions, dtype);
    int64_t first = 0;
    for (int64_t n : {1, 62, 70, 17}) {  // a block filled by several calls, a call over two blocks
      kv.put(first, k.view().row_range(first, n), v.view().row_range(first, n));
      first += n;
    }
    ASSERT_EQ(first, kPositions);
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t c = 0; c < kDims; ++c) {
          const int64_t turned = (p / kKeyBlock * kDims + c) * kKeyBlock + p % kKeyBlock;
          const float want = key(p, head * kDims + c);
          ASSERT_EQ(stored(kv.keys(head), dtype, turned), want) << head << " " << p << " " << c;
          ASSERT_EQ(stored(kv.values(head), dtype, p * kDims + c), -want);
        }
      }
    }
  }
}

}  // namespace
}  // namespace quern
