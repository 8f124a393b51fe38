// SPDX-License-Identifier: Apache-2.0
// Keys and values of one sequence, one store per layer. Plain f16 or f32, capacity fixed at
// creation. Keys are stored as attention reads them, after RoPE.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace quern {

struct KvShape {
  int64_t n_kv_heads = 0;
  int64_t d_head = 0;
};

// One layer of one sequence. Rows of one head are contiguous: [n_kv_heads, capacity, d_head].
class LayerKv {
 public:
  LayerKv(KvShape shape, int64_t capacity, DType dtype);

  // Stores position `position` of every head; k and v are [n_kv_heads * d_head].
  void put(int64_t position, const float* k, const float* v);

  DType dtype() const { return dtype_; }
  const std::byte* keys(int64_t head) const { return keys_.data() + head * head_bytes_; }
  const std::byte* values(int64_t head) const { return values_.data() + head * head_bytes_; }
  size_t n_bytes() const { return keys_.size() + values_.size(); }

 private:
  KvShape shape_;
  int64_t capacity_, head_bytes_;
  DType dtype_;
  AlignedVector<std::byte> keys_, values_;
};

class KvCache {
 public:
  // dtype: kF16 or kF32.
  KvCache(const std::vector<KvShape>& layers, int64_t capacity, DType dtype);
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  LayerKv& layer(size_t i) { return layers_[i]; }
  void advance(int64_t n) { length_ += n; }
  void truncate(int64_t length) { length_ = length; }
  size_t n_bytes() const;

 private:
  std::vector<LayerKv> layers_;
  int64_t capacity_, length_ = 0;
};

}  // namespace quern
