// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include "base/check.h"
#include "kernels/kernels.h"

namespace quern {

LayerKv::LayerKv(KvShape shape, int64_t capacity, DType dtype)
    : shape_(shape),
      capacity_(capacity),
      head_bytes_(capacity * shape.d_head * dtype_bits(dtype) / 8),
      dtype_(dtype),
      keys_(static_cast<size_t>(shape.n_kv_heads * head_bytes_)),
      values_(keys_.size()) {
  QUERN_CHECK(dtype == DType::kF16 || dtype == DType::kF32);
}

void LayerKv::put(int64_t position, const float* k, const float* v) {
  QUERN_DCHECK(position >= 0 && position < capacity_);
  const int64_t row_bytes = head_bytes_ / capacity_;
  for (int64_t head = 0; head < shape_.n_kv_heads; ++head) {
    std::byte* key = keys_.data() + head * head_bytes_ + position * row_bytes;
    std::byte* value = values_.data() + head * head_bytes_ + position * row_bytes;
    if (dtype_ == DType::kF16) {
      kernels().float_to_f16(k + head * shape_.d_head, shape_.d_head, key);
      kernels().float_to_f16(v + head * shape_.d_head, shape_.d_head, value);
    } else {
      convert_from_float(k + head * shape_.d_head, shape_.d_head, dtype_, key);
      convert_from_float(v + head * shape_.d_head, shape_.d_head, dtype_, value);
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
