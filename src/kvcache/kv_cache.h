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

// One layer of one sequence, as `attend` reads it: for every head, turned blocks of keys and rows
// of values.
class LayerKv {
 public:
  LayerKv(KvShape shape, int64_t capacity, DType dtype);

  // Stores positions from `position` on of every head; rows of k and v are [n_kv_heads * d_head].
  void put(int64_t position, MatrixView<const float> k, MatrixView<const float> v);

  DType dtype() const { return dtype_; }
  const std::byte* keys(int64_t head) const { return keys_.data() + head * key_bytes_; }
  const std::byte* values(int64_t head) const { return values_.data() + head * value_bytes_; }
  size_t n_bytes() const { return keys_.size() + values_.size(); }

 private:
  void put_head(int64_t head, int64_t position, MatrixView<const float> k,
                MatrixView<const float> v);

  KvShape shape_;
  int64_t capacity_, key_bytes_, value_bytes_;  // of a head
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
