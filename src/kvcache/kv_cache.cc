// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/attention.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Row `row` of a turned block.
template <class T>
void put_turned(const T* x, int64_t n, int64_t row, T* block) {
  for (int64_t c = 0; c < n; ++c) block[c * kKeyBlock + row] = x[c];
}

}  // namespace

LayerKv::LayerKv(KvShape shape, int64_t capacity, DType dtype)
    : shape_(shape),
      capacity_(capacity),
      key_bytes_(round_up(capacity, kKeyBlock) * shape.d_head * dtype_bits(dtype) / 8),
      value_bytes_(capacity * shape.d_head * dtype_bits(dtype) / 8),
      dtype_(dtype),
      keys_(static_cast<size_t>(shape.n_kv_heads * key_bytes_)),
      values_(static_cast<size_t>(shape.n_kv_heads * value_bytes_)) {
  QUERN_CHECK(dtype == DType::kF16 || dtype == DType::kF32);
}

void LayerKv::put(int64_t position, MatrixView<const float> k, MatrixView<const float> v) {
  QUERN_DCHECK(position >= 0 && position + k.rows <= capacity_);
  const int64_t heads = shape_.n_kv_heads, grain = k.rows < kKeyBlock ? heads : 1;
  parallel_for(heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) put_head(head, position, k, v);
  });
}

void LayerKv::put_head(int64_t head, int64_t position, MatrixView<const float> k,
                       MatrixView<const float> v) {
  const int64_t d = shape_.d_head;
  std::byte* keys = keys_.data() + head * key_bytes_;
  std::byte* values = values_.data() + head * value_bytes_;
  for (int64_t i = 0; i < k.rows; ++i) {
    const int64_t p = position + i, block = p / kKeyBlock * kKeyBlock * d, row = p % kKeyBlock;
    const float *key = k.row(i) + head * d, *value = v.row(i) + head * d;
    if (dtype_ == DType::kF32) {
      put_turned(key, d, row, reinterpret_cast<float*>(keys) + block);
      std::copy_n(value, d, reinterpret_cast<float*>(values) + p * d);
      continue;
    }
    kernels().float_to_f16(value, d, values + p * d * 2);
    for (int64_t c = 0; c < d; c += kKeyBlock) {
      uint16_t halves[kKeyBlock];
      const int64_t n = std::min(kKeyBlock, d - c);
      kernels().float_to_f16(key + c, n, halves);
      put_turned(halves, n, row, reinterpret_cast<uint16_t*>(keys) + block + c * kKeyBlock);
    }
  }
}

KvCache::KvCache(const std::vector<KvShape>& layers, int64_t capacity, DType dtype)
    : capacity_(capacity) {
  for (const KvShape& shape : layers) layers_.emplace_back(shape, capacity, dtype);
}

size_t KvCache::n_bytes() const {
  size_t total = 0;
  for (const LayerKv& layer : layers_) total += layer.n_bytes();
  return total;
}

}  // namespace quern
